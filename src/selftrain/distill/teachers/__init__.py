"""Teachers: what a student can learn from, besides a model in the same process."""

from selftrain.distill.rows import encode_rows
from selftrain.distill.targets import Targets, Teacher, TopKTargets
from selftrain.distill.teachers.adapters import AdapterFreeTeacher
from selftrain.distill.teachers.cache import CachedTeacher
from selftrain.distill.teachers.cache_writer import write_teacher_cache
from selftrain.distill.teachers.callable import CallableTeacher
from selftrain.distill.teachers.ema import EMATeacher
from selftrain.distill.teachers.endpoint import EndpointTeacher
from selftrain.distill.teachers.model import ModelTeacher
from selftrain.training.targets import HiddenTargets, LogitTargets

__all__ = [
    "AdapterFreeTeacher",
    "CachedTeacher",
    "CallableTeacher",
    "EMATeacher",
    "EndpointTeacher",
    "HiddenTargets",
    "LogitTargets",
    "ModelTeacher",
    "Targets",
    "Teacher",
    "TopKTargets",
    "encode_rows",
    "write_teacher_cache",
]
