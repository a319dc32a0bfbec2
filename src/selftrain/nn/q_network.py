"""Networks that score actions: an encoder, and a value head for all actions.

Shape letters: B batch, A actions, Z value bins (1 for scalar heads).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from selftrain._core.checks import check_int
from selftrain.nn.value_heads import CategoricalValueHead, ScalarValueHead
from selftrain.ops.scalar_transforms import ScalarTransform
from selftrain.ops.value_transforms import ValueTransform

__all__ = ["QNetwork", "value_head"]

ValueHead = CategoricalValueHead | ScalarValueHead


def value_head(
    transform: ValueTransform | None = None,
    *,
    scalar: ScalarTransform | None = None,
    huber_delta: float | None = None,
) -> Callable[[int, int], ValueHead]:
    """Return a function that makes a value head of ``(in_features, num_outputs)``.

    Args:
        transform: Bins of a :class:`CategoricalValueHead`, such as ``HLGauss``; None makes a
            :class:`ScalarValueHead`.
        scalar: For scalar heads: applied to targets before they are compared.
        huber_delta: For scalar heads: error from which the loss is linear; None for squared errors.

    Raises:
        ValueError: If an argument of scalar heads comes with a transform.

    Example:
        >>> from selftrain.ops import HLGauss, Support
        >>> value_head(HLGauss(Support(-10.0, 10.0, 51)))(64, 4).num_outputs
        4
    """
    if transform is None:
        return partial(_scalar_head, scalar=scalar, huber_delta=huber_delta)
    if scalar is not None or huber_delta is not None:
        raise ValueError(
            "scalar and huber_delta belong to scalar heads, and a transform was given; a transform "
            "has its own scalar, and cross entropy needs no huber_delta."
        )
    return partial(_categorical_head, transform=transform)


class QNetwork(nn.Module):
    """Values of all actions in a state: an encoder, then a head with one output an action.

    With ``dueling`` (arXiv 1511.06581) a second head scores the state, and
    ``logits = V + Adv - mean_a Adv``; for categorical heads this is done on logits, as in Rainbow
    (arXiv 1710.02298). Both heads take the encoder's features, without hidden layers of their own.

    Args:
        encoder: Any module with an integer ``num_features`` that maps observations to
            ``[batch, num_features]``.
        num_actions: Number of actions, at least 2.
        head: Makes a head of ``(in_features, num_outputs)``; see :func:`value_head`.
        dueling: Score states and advantages apart.

    Raises:
        TypeError: If ``encoder`` has no ``num_features``, or ``num_actions`` is no integer.
        ValueError: If ``num_actions`` is below 2.

    Example:
        >>> import torch
        >>> from selftrain.nn import MLPEncoder
        >>> network = QNetwork(MLPEncoder(4), 2, value_head())
        >>> logits = network(torch.zeros(8, 4))
        >>> network.value(logits).argmax(-1).shape
        torch.Size([8])
        >>> chosen = network.head.select(logits, torch.zeros(8, dtype=torch.long))
        >>> loss = network.head.loss(chosen, torch.ones(8)).mean()
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_actions: int,
        head: Callable[[int, int], Any],
        *,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        check_int("num_actions", num_actions, low=2)
        num_features = getattr(encoder, "num_features", None)
        if not isinstance(num_features, int):
            raise TypeError(
                f"encoder must have an integer num_features, got {num_features!r}; set it to the "
                "size of its output."
            )
        self.num_actions, self.encoder = num_actions, encoder
        self.head = head(num_features, num_actions)
        self.state_head = head(num_features, 1) if dueling else None

    def forward(self, observations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch A Z"]:
        """Return logits of each action; ``.head`` selects of them, reads values and compares."""
        features = self.encoder(observations)
        logits_BAZ = self.head(features)
        if self.state_head is None:
            return logits_BAZ
        state_B1Z = self.state_head(features).unsqueeze(1)
        return state_B1Z + logits_BAZ - logits_BAZ.mean(1, keepdim=True)

    def value(self, logits: Float[Tensor, "batch A Z"]) -> Float[Tensor, "batch A"]:
        """Return the values that logits stand for, in float32."""
        return self.head.value(logits)


def _scalar_head(
    in_features: int, num_outputs: int, *, scalar: ScalarTransform | None, huber_delta: float | None
) -> ScalarValueHead:
    return ScalarValueHead(
        in_features, num_outputs=num_outputs, scalar=scalar, huber_delta=huber_delta
    )


def _categorical_head(
    in_features: int, num_outputs: int, *, transform: ValueTransform
) -> CategoricalValueHead:
    return CategoricalValueHead(in_features, transform, num_outputs=num_outputs)
