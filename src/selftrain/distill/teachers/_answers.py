"""What a cache keeps of a teacher's answer.

Shape letters: N scored tokens, H hidden size, K tokens kept.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from selftrain.distill.targets import Targets, TopKTargets
from selftrain.training.targets import HiddenTargets, LogitTargets, dense_logits

_PIECE = 8192  # words of the vocabulary that are converted to float32 together


@torch.no_grad()
def kept_values(
    targets: Targets,
    kind: Literal["hidden", "top_k"],
    *,
    top_k: int | None,
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Return the tensors of a shard that an answer makes, one row for each scored token.

    Raises:
        ValueError: If the teacher knows fewer than ``top_k`` tokens.
    """
    if kind == "hidden":
        assert isinstance(targets, HiddenTargets)  # noqa: S101
        return {"hidden": targets.hidden.to(dtype or targets.hidden.dtype)}
    listed = isinstance(targets, TopKTargets)
    log_probs = targets.log_probs if listed else _logits(targets).log_softmax(-1)
    width = log_probs.shape[-1]
    assert top_k is not None  # noqa: S101
    if top_k > width:
        raise ValueError(
            f"top_k={top_k} is more than the {width} tokens that the teacher gives at a position. "
            "Lower it."
        )
    best = log_probs.topk(top_k, dim=-1)
    ids = targets.token_ids.gather(-1, best.indices) if listed else best.indices
    return {"token_ids": ids.int(), "log_probs": best.values.to(dtype or torch.float32)}


def _logits(targets: LogitTargets | HiddenTargets) -> Tensor:
    """Return logits in float32, without the rounding of products in half precision."""
    if isinstance(targets, LogitTargets):
        return targets.logits.float()
    hidden, head = targets.hidden.float(), targets.head
    weights = head.weight.split(_PIECE)
    biases = [None] * len(weights) if head.bias is None else head.bias.float().split(_PIECE)
    parts = [
        dense_logits(HiddenTargets(hidden, replace(head, weight=weight.float(), bias=bias)))
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(parts, -1)
