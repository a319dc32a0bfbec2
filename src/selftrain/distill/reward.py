"""Rewards for the student's own text, and what the policy gradient makes of them (GKD, eq. 5)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from selftrain.distill.config import DistillConfig

Reward = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Sequence[float]]
"""Scores texts: called with rows of the data set and, for each, what the student wrote."""


def check_reward(config: DistillConfig, reward: Reward | None) -> None:
    """Raise ``ValueError`` if there is a reward that does not count, or none that would."""
    if (reward is None) == (config.reward_weight == 0):
        return
    raise ValueError(
        "a reward has no effect with reward_weight=0; set it, or leave the reward out."
        if reward is not None
        else f"reward_weight={config.reward_weight} needs a reward, a function of rows and texts."
    )


def score(reward: Reward, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
    """Return one finite reward a text.

    Raises:
        ValueError: If the function returns another number of them, or one that is not finite.
    """
    scores = [float(value) for value in reward(rows, texts)] if rows else []
    if len(scores) != len(texts):
        raise ValueError(f"reward returned {len(scores)} numbers for {len(texts)} texts.")
    for text, value in zip(texts, scores, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"reward returned {value} for the text {text!r}; it must be finite.")
    return scores


def gather_scores(
    scores: Mapping[int, float], num_rows: int, accelerator: Accelerator
) -> dict[int, float]:
    """Return the rewards of all processes by their rows' indices in the batch."""
    table = torch.zeros(2, num_rows, dtype=torch.float64)
    for i, value in scores.items():
        table[:, i] = torch.tensor([value, 1.0])
    if accelerator.num_processes > 1:
        # Reduced in float32 where a device has no other.
        table = accelerator.reduce(table.float().to(accelerator.device), "sum").double().cpu()
    return {i: float(table[0, i]) for i in range(num_rows) if table[1, i]}


def advantages(scores: Mapping[int, float], baseline: str) -> dict[int, float]:
    """Return reward minus baseline by row.

    The batch's mean contains the row's own reward, which shrinks the expected gradient of B rows by
    1 - 1/B; the mean of the other rows leaves it unbiased, at a somewhat higher variance.

    Args:
        scores: The rewards of the whole batch.
        baseline: "batch" or "leave_one_out". A row without others has the baseline 0 there.
    """
    total, count = math.fsum(scores.values()), len(scores)
    if baseline == "batch":
        return {i: value - total / count for i, value in scores.items()}
    others = max(count - 1, 1)
    return {i: value - (total - value) / others for i, value in scores.items()}
