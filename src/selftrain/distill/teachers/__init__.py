"""Teachers: what a student can learn from."""

from selftrain.distill.teachers.model import ModelTeacher

__all__ = ["ModelTeacher"]
