"""Runs programs that are not trusted out of process; ``docs/security.md`` says how safely."""

from selftrain.tasks.sandbox.pool import Runner, Sandbox
from selftrain.tasks.sandbox.program import Outcome, Program, Result

__all__ = ["Outcome", "Program", "Result", "Runner", "Sandbox"]
