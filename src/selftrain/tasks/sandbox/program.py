"""Programs to run, and what comes of them."""

import json
import secrets
import signal
from dataclasses import dataclass
from typing import Any, Literal

from selftrain.tasks.sandbox.guest.values import decode

Status = Literal[
    "finished",
    "failed",
    "error",
    "timeout",
    "memory",
    "output_limit",
    "syntax",
    "forbidden",
    "sandbox_error",
]
_CLAIMS: tuple[Status, ...] = ("failed", "error", "memory", "output_limit", "syntax", "forbidden")
_MIN_HASHED = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Python source to be run in this order, in one namespace and one process."""

    code: str
    """What was written by somebody who is not trusted."""
    setup: str = ""
    """Run before the code."""
    after: str = ""
    """Run after the code."""
    calls: tuple[str, ...] = ()
    """Expressions whose values are wanted; a call that raises does not stop the next."""
    asserts: tuple[str, ...] = ()
    """Statements of which it matters only whether they raise; run after the calls."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one call or one assert."""

    status: Status
    """"finished", or why not."""
    value: Any = None
    """The value of a call, of plain types; an ``Opaque`` object where it was of another type."""
    detail: str = ""
    """The exception's type and message."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a program."""

    status: Status
    """"finished" if all of it was run without an exception, or the first trouble."""
    results: tuple[Result, ...] = ()
    """One for each call and, after those, one for each assert."""
    detail: str = ""
    """What a reader may want to know about the trouble."""
    output: str = ""
    """The beginning of what it printed, at most 4000 bytes."""
    milliseconds: float = 0.0
    """Time from fork to the last process's end."""
    level: str | None = None
    """The isolation that it ran under."""


def make_request(program: Program) -> dict[str, Any]:
    """Return what the server is sent: the sources, and a nonce for each assert."""
    return {
        "setup": program.setup,
        "code": program.code,
        "after": program.after,
        "calls": program.calls,
        "asserts": program.asserts,
        "nonces": [secrets.token_hex(16) for _ in program.asserts],
    }


def read_outcome(
    request: dict[str, Any], head: dict[str, Any], result: bytes, output: bytes, level: str
) -> Outcome:
    """Return what a reply says, every part of ``result`` being the word of the program itself."""
    log = _Log(request)
    for line in result.split(b"\n"):
        log.read(line)
    status, detail = log.trouble or ("finished", "")
    if not log.complete:
        if not log.ready:
            status, detail = "sandbox_error", f"the program was not started: {head}"
        elif log.stopped is None:
            status, detail = _how_it_ended(head)
    missing = Result(status, detail=detail)
    return Outcome(
        status,
        tuple(missing if found is None else found for found in log.results),
        detail,
        output.decode(errors="replace"),
        head["milliseconds"],
        level,
    )


class _Log:
    """The messages of a program, believed only as far as they can do no harm."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.calls, self.nonces = request["calls"], request["nonces"]
        self.results: list[Result | None] = [None] * (len(self.calls) + len(self.nonces))
        self.ready = False
        self.stopped: str | None = None
        self.trouble: tuple[Status, str] | None = None

    @property
    def complete(self) -> bool:
        return self.ready and self.stopped is None and None not in self.results

    def read(self, line: bytes) -> None:
        try:
            match json.loads(line):
                case ["ready"]:
                    self.ready = True
                case ["value", int(i), data]:
                    # The source of a test bounds how large a set it can be about.
                    limit = max(_MIN_HASHED, len(self.calls[i]))
                    self.results[range(len(self.calls))[i]] = Result(
                        "finished", decode(data, max_hashed=limit)
                    )
                case ["passed", int(i), nonce] if nonce == self.nonces[i]:
                    self.results[len(self.calls) + range(len(self.nonces))[i]] = Result("finished")
                case ["raised", str(where), kind, str(text)]:
                    self._raised(where, kind if kind in _CLAIMS else "error", text[:400])
        except (ValueError, IndexError, RecursionError):
            return  # a line that is not ours counts for nothing

    def _raised(self, where: str, kind: Status, text: str) -> None:
        detail = f"{where}: {text}"
        stage, _, number = where.partition(" ")
        self.trouble = self.trouble or (kind, detail)
        if stage in ("call", "assert"):
            offset = 0 if stage == "call" else len(self.calls)
            self.results[range(len(self.results))[offset + int(number)]] = Result(
                kind, None, detail
            )
        else:
            self.stopped = stage


def _how_it_ended(head: dict[str, Any]) -> tuple[Status, str]:
    end, status = head["end"], head["status"]
    if end == "timeout":
        return "timeout", "still running when its time was over"
    if end == "output_limit":
        return "output_limit", "printed or returned more than is allowed"
    number = status & 0x7F
    if number == signal.SIGXCPU:
        return "timeout", "used more processor time than is allowed"
    if number == signal.SIGSYS:
        return "forbidden", "made a system call of another architecture"
    how = f"signal {number}" if number else f"exit status {status >> 8}"
    return "error", f"ended before its tests did, with {how}"
