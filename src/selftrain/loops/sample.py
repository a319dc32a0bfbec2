"""One sampled completion with everything that is known about where it came from."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from selftrain._core.config import from_dict, to_dict
from selftrain._core.rng import derive
from selftrain.tasks.base import Grade

SampleKey = tuple[int, str, int]
"""Round, problem id and index: unique within a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A completion of a problem, its provenance, and its grade once it has one."""

    round: int
    """The round that drew it, from 0."""
    problem_id: str
    """Which problem it answers."""
    index: int
    """Its number among the completions of this problem in this round."""
    seed: int
    """What its noise was drawn from."""
    text: str
    """The completion."""
    token_ids: tuple[int, ...] | None
    """The sampled ids, end-of-sequence token included; None where a server gives none."""
    finish_reason: Literal["stop", "length", "error"]
    """Ended by itself, by the token budget, or by a failure."""
    log_prob: float | None
    """Sum of its tokens' log-probabilities under the law sampled from; None where not known."""
    policy: str
    """Fingerprint of the weights that wrote it."""
    sampling: str
    """Fingerprint of the sampling parameters."""
    grade: Grade | None = None
    """The judgement, if it was judged."""

    @property
    def key(self) -> SampleKey:
        """What identifies it within a run."""
        return self.round, self.problem_id, self.index

    @property
    def score(self) -> float | None:
        """The grade's score; None where it was not or could not be judged."""
        return None if self.grade is None else self.grade.score

    def graded(self, grade: Grade) -> "Sample":
        """Return the sample with a grade."""
        return replace(self, grade=grade)


def sample_seed(seed: int, round: int, problem_id: str, index: int) -> int:
    """Return the seed of one sample, a function of its key and the run's seed alone."""
    return derive(seed, "sample", round, problem_id, index)


def to_row(sample: Sample) -> dict[str, object]:
    """Return a sample as a JSON object."""
    # By hand: a run has a million samples, and a general walk looks at every token.
    row = {name: getattr(sample, name) for name in _FIELDS}
    row["token_ids"] = None if sample.token_ids is None else list(sample.token_ids)
    row["grade"] = None if sample.grade is None else to_dict(sample.grade)
    return row


def from_row(row: dict[str, Any]) -> Sample:
    """Read what :func:`to_row` wrote.

    Raises:
        ValueError: If the row has a field that samples have not.
    """
    if not row.keys() <= set(_FIELDS):
        return from_dict(Sample, row)  # says which
    ids, grade = row.get("token_ids"), row.get("grade")
    typed: dict[str, Any] = {
        "token_ids": None if ids is None else tuple(ids),
        "grade": None if grade is None else grade_from_row(grade),
    }
    return Sample(**{**row, **typed})


def grade_from_row(row: dict[str, Any]) -> Grade:
    """Read a grade that was written as a JSON object.

    Raises:
        ValueError: If the row has a field that grades have not, or lacks one.
    """
    if not {"score", "status"} <= row.keys() <= _GRADE_FIELDS:
        return from_dict(Grade, row)  # says which
    return Grade(**row)


_GRADE_FIELDS = frozenset(f.name for f in fields(Grade))
_FIELDS = tuple(f.name for f in fields(Sample))
