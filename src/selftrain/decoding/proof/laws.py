"""Goodness of fit of counts to a law."""

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

_LEAST_EXPECTED = 5.0
_SMALLEST = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True)
class LawTest:
    """How counts compare with the law that they should follow."""

    statistic: float
    """G, twice the sum of observed log(observed / expected); infinite if the impossible came."""
    degrees: int
    """Degrees of freedom."""
    p_value: float
    """The probability of a statistic at least as large by chance."""
    sigmas: float
    """The same in standard deviations of a normal variable; a lower bound where the p-value is too
    small for a float."""
    total_variation: float
    """Distance of the observed frequencies from the law."""


def compare_counts(counts: Tensor, law: Tensor) -> LawTest:
    """Run a G-test of independent draws against ``law``.

    Cells of fewer than 5 expected draws are taken together.

    Args:
        counts: How often each outcome came, of any shape.
        law: Probabilities, of the same shape.

    Raises:
        ValueError: If the shapes differ, or there are not two cells to compare.
    """
    if counts.shape != law.shape:
        raise ValueError(
            f"counts has shape {tuple(counts.shape)}, law {tuple(law.shape)}; they must be equal."
        )
    observed, law = counts.flatten().double(), law.flatten().double()
    law = law / law.sum()
    expected = law * observed.sum()
    distance = float((observed / observed.sum() - law).abs().sum()) / 2
    common = expected >= _LEAST_EXPECTED
    cells = [torch.cat([x[common], x[~common].sum()[None]]) for x in (observed, expected)]
    used = (cells[0] > 0) | (cells[1] > 0)
    observed_cells, expected_cells = (x[used] for x in cells)
    degrees = len(expected_cells) - 1
    if degrees < 1:
        raise ValueError("there are too few counts for two cells of 5 expected draws.")
    if (observed[expected == 0] > 0).any():
        return LawTest(
            statistic=float("inf"),
            degrees=degrees,
            p_value=0.0,
            sigmas=float("inf"),
            total_variation=distance,
        )
    ratio = torch.xlogy(observed_cells, observed_cells / expected_cells)
    statistic = max(2 * float(ratio.sum()), 0.0)  # rounding may leave less than nothing
    p_value = float(stats.chi2.sf(statistic, degrees))
    sigmas = float(stats.norm.isf(p_value))
    if p_value < _SMALLEST:
        # Wilson and Hilferty: the cube root of chi-square is nearly normal; too small far out.
        spread = 2 / (9 * degrees)
        sigmas = ((statistic / degrees) ** (1 / 3) - 1 + spread) / spread**0.5
    return LawTest(
        statistic=statistic,
        degrees=degrees,
        p_value=p_value,
        sigmas=sigmas,
        total_variation=distance,
    )


def count_texts(tokens: Tensor, vocab_size: int) -> Tensor:
    """Return how often each text occurs among the rows ``[rows, time]``: ``[vocab] * time``."""
    time = tokens.shape[1]
    code = (tokens * vocab_size ** torch.arange(time - 1, -1, -1)).sum(1)
    return code.bincount(minlength=vocab_size**time).view([vocab_size] * time)
