"""One step of Bellman's equation with either head.

Shape letters: B batch, A actions, Z value bins.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from selftrain.ops._bins import at_least_float32
from selftrain.ops.value_transforms import C51, Grid


def greedy_actions(
    values_BA: Float[Tensor, "batch actions"], legal_BA: Bool[Tensor, "batch actions"] | None
) -> Int64[Tensor, " batch"]:
    """Return the legal action with the highest value in each row; ties go to the first."""
    if legal_BA is not None:
        values_BA = values_BA.masked_fill(~legal_BA, -torch.inf)
    return values_BA.argmax(-1)


def bellman_loss(
    head: nn.Module,
    logits_BZ: Float[Tensor, "batch bins"],
    next_logits_BZ: Float[Tensor, "batch bins"],
    returns_B: Float[Tensor, " batch"],
    discounts_B: Float[Tensor, " batch"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    r"""Return the loss of predictions against :math:`R + \gamma^n Q'`, and these targets.

    With :class:`~selftrain.ops.C51` the target is the projected distribution at the next state,
    with every other head the value :math:`R + \gamma^n Q'` itself.

    Args:
        head: Categorical or scalar value head; its parameters play no part.
        logits_BZ: Of the actions that were done.
        next_logits_BZ: Of the target network for the next actions; no gradient flows to them.
        returns_B: Discounted sums of rewards.
        discounts_B: :math:`\gamma^n`, and 0 where the episode terminated.
    """
    next_logits_BZ = at_least_float32(next_logits_BZ.detach())
    targets_B = returns_B + discounts_B * head.value(next_logits_BZ)
    transform = getattr(head, "transform", None)
    if isinstance(transform, C51):
        grid = Grid(head.centers, head.rest)
        probs = transform.project(next_logits_BZ.softmax(-1), returns_B, discounts_B, grid=grid)
        return head.loss(logits_BZ, target_probs=probs), targets_B
    return head.loss(logits_BZ, targets_B), targets_B
