"""What the convolutional encoders share: how pixels come in, and the layer that comes last."""

import math

import torch
from torch import Tensor, nn

from selftrain._core.checks import check_int
from selftrain.nn.soft_moe import SoftMoE


def check_in_shape(in_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape as a tuple.

    Raises:
        ValueError: If it is not three positive integers.
        TypeError: If one of the three is no integer.
    """
    shape = tuple(in_shape)
    if len(shape) != 3:
        raise ValueError(
            f"in_shape must be (channels, height, width), got {shape}; a stack of gray frames has "
            "the frames as channels, and one gray frame has 1 channel."
        )
    for name, size in zip(("channels", "height", "width"), shape, strict=True):
        check_int(f"{name} of in_shape", size, low=1)
    return shape


def scale_pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in ``dtype``; bytes 0 to 255 become numbers from 0 to 1."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def as_images(x: Tensor, in_shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Return images ``[batch, *in_shape]``; all axes before the last two become channels.

    Raises:
        ValueError: If the images have another size or another number of channels.
    """
    fits = x.ndim >= 3 and x.shape[-2:] == in_shape[1:]
    if not fits or math.prod(x.shape[1:]) != math.prod(in_shape):
        raise ValueError(
            f"the input has shape {tuple(x.shape)}; it must be [batch, channels, height, width] "
            f"with {in_shape} after the batch (a stack of frames counts as channels)."
        )
    return scale_pixels(x, dtype).reshape(x.shape[0], *in_shape)


def initialize(module: nn.Module) -> None:
    """Draw Xavier-uniform weights and zero biases for all convolutions and linear layers."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Penultimate(nn.Module):
    """The layer between convolutions and heads: none, a dense one, or experts for each place.

    Args:
        shape: Channels, height and width of what comes in.
        hidden: Outputs of the dense layer, or of each expert; None passes the input on.
        num_experts: Experts of a :class:`SoftMoE` whose tokens are the places; None is dense.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, hidden: int | None, num_experts: int | None
    ) -> None:
        super().__init__()
        channels, num_tokens = shape[0], shape[1] * shape[2]
        self.layer: nn.Module | None = None
        self.tokenwise = num_experts is not None
        if hidden is not None:
            check_int("hidden", hidden, low=1)
        if num_experts is not None:
            if hidden is None:
                raise ValueError(
                    "hidden is None, and num_experts needs it: the number of outputs of an expert."
                )
            width = hidden  # bound now, for the factory below
            check_int("num_experts", num_experts, low=1)
            self.layer = SoftMoE(
                channels,
                num_experts,
                lambda: nn.Sequential(nn.Linear(channels, width), nn.ReLU()),
                slots_per_expert=math.ceil(num_tokens / num_experts),
            )
            self.num_features = num_tokens * hidden
        elif hidden is not None:
            self.layer = nn.Sequential(nn.Linear(channels * num_tokens, hidden), nn.ReLU())
            self.num_features = hidden
        else:
            self.num_features = channels * num_tokens

    def forward(self, latent: Tensor) -> Tensor:
        """Return features ``[batch, num_features]`` of ``[batch, channels, height, width]``."""
        if self.layer is None:
            return latent.flatten(1)
        if self.tokenwise:
            return self.layer(latent.flatten(2).transpose(1, 2)).flatten(1)
        return self.layer(latent.flatten(1))
