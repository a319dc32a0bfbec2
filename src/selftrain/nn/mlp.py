"""An encoder for observations that are short vectors."""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from selftrain._core.checks import check_int, check_not_empty
from selftrain.nn._conv import scale_pixels

__all__ = ["MLPEncoder"]


class MLPEncoder(nn.Module):
    """Linear layers with ReLU after each, for vectors or any small observation.

    Args:
        num_inputs: Numbers in one observation.
        hidden: Outputs of each layer; the last is the number of features.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is below 1, or there are no layers.

    Example:
        >>> MLPEncoder(4, hidden=(64, 32)).num_features
        32
    """

    def __init__(self, num_inputs: int, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        check_not_empty("hidden", hidden)
        check_int("num_inputs", num_inputs, low=1)
        for size in hidden:
            check_int("each of hidden", size, low=1)
        self.num_inputs, self.num_features = num_inputs, hidden[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise((num_inputs, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Return features; all axes after the batch are flattened, and bytes divided by 255.

        Raises:
            ValueError: If an observation has another number of elements.
        """
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.num_inputs:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}; it must be [batch, ...] with "
                f"{self.num_inputs} numbers after the batch."
            )
        return self.layers(scale_pixels(x.flatten(1), next(self.parameters()).dtype))
