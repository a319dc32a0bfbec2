"""The penalty of conservative Q-learning (arXiv 2006.04779)."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from selftrain.ops._bins import at_least_float32

__all__ = ["conservative_penalty"]


def conservative_penalty(
    values: Float[Tensor, "*batch actions"],
    actions: Int64[Tensor, "*batch"],
    *,
    legal: Bool[Tensor, "*batch actions"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return how far the values of all actions exceed that of the action in the data.

    .. math:: \log \sum_a \exp Q(s, a) - Q(s, a_{data}) \ge 0

    This is the term of CQL(H), equation 4 of the paper: the cross entropy of the logged action
    under softmax(Q), so that it alone turns the values into logits of the policy that logged. Its
    gradient with respect to the values is softmax(Q) less the one-hot code of the action; with a
    categorical head it flows on through the softmax over the bins. In float32, or float64 if that
    is given.

    Args:
        values: Values of all actions, such as a head reads off.
        actions: The actions in the data.
        legal: Which actions there are in each state; None for all. The others count for nothing.

    Raises:
        ValueError: If shapes do not belong together.

    Example:
        >>> conservative_penalty(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """
    if values.ndim == 0 or values.shape[:-1] != actions.shape:
        raise ValueError(
            f"values has shape {tuple(values.shape)}, actions {tuple(actions.shape)}; they must be "
            "[*batch, actions] and [*batch]."
        )
    if legal is not None and legal.shape != values.shape:
        raise ValueError(
            f"legal has shape {tuple(legal.shape)}, values {tuple(values.shape)}; they must be "
            "equal (nothing is broadcast)."
        )
    values = at_least_float32(values)
    chosen = values.gather(-1, actions[..., None]).squeeze(-1)
    if legal is not None:
        values = values.masked_fill(~legal, -torch.inf)
    return values.logsumexp(-1) - chosen
