"""How far a score can be trusted: what it lets pass and a stricter judge does not."""

from collections.abc import Sequence
from dataclasses import dataclass

from selftrain._core.checks import check_range


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """How many samples of full score fail a stricter judgement."""

    num_false: int
    """Samples of full score that the stricter judge fails."""
    num_passed: int
    """Samples of full score that both could judge."""
    num_unjudged: int
    """Samples of full score that the stricter judge could not judge; not among ``num_passed``."""

    @property
    def rate(self) -> float | None:
        """``num_false / num_passed``; None where nothing passed."""
        return self.num_false / self.num_passed if self.num_passed else None


def false_positive_rate(
    scores: Sequence[float | None], strict_scores: Sequence[float | None]
) -> FalsePositives:
    """Count the samples of full score that fail hidden tests, or another stricter judgement.

    Args:
        scores: Score of every sample, in [0, 1]; None where it could not be judged.
        strict_scores: The stricter score of the same samples. It matters only where the score is
            1, and may be None elsewhere.

    Raises:
        ValueError: If the lengths differ, or a score lies outside [0, 1] or is NaN.

    Example:
        >>> false_positive_rate([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, None, None]).rate
        0.5
    """
    if len(scores) != len(strict_scores):
        raise ValueError(
            f"strict_scores must have one value per score ({len(scores)}), got "
            f"{len(strict_scores)}."
        )
    for name, values in (("scores", scores), ("strict_scores", strict_scores)):
        for i, value in enumerate(values):
            if value is not None:
                check_range(f"{name}[{i}]", value, low=0.0, high=1.0)
    strict = [s for score, s in zip(scores, strict_scores, strict=True) if score == 1]
    judged = [s for s in strict if s is not None]
    return FalsePositives(sum(s < 1 for s in judged), len(judged), len(strict) - len(judged))
