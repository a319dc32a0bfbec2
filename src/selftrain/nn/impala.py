"""The residual convolutional encoder of IMPALA, at any width."""

from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain._core.checks import check_int, check_not_empty
from selftrain.nn._conv import Penultimate, as_images, check_in_shape, initialize

__all__ = ["ImpalaEncoder"]


class ImpalaEncoder(nn.Module):
    """Three stages of convolution, max-pool and residual blocks (arXiv 1802.01561).

    At width 4 it is the encoder of BBF (arXiv 2305.19452). There are no norm layers. Pooling halves
    the image and pads as "SAME" does in TensorFlow and JAX: an even side on the right alone, which
    is not what ``padding=1`` does. Weights are drawn Xavier-uniform and biases are zero.

    Args:
        in_shape: Channels, height and width; a stack of gray frames has the frames as channels.
        channels: Of each stage, before they are multiplied.
        width: Multiplies the channels.
        num_blocks: Residual blocks of each stage.
        hidden: Outputs of the dense layer, or of each expert; None leaves the layer out.
        num_experts: Put a :class:`SoftMoE` of so many experts in place of the dense layer, whose
            tokens are the places of the last stage (arXiv 2402.08609).

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is below 1.

    Example:
        >>> import torch
        >>> encoder = ImpalaEncoder(width=2, hidden=256)
        >>> encoder.latent_shape, encoder(torch.zeros(1, 4, 84, 84)).shape
        ((64, 11, 11), torch.Size([1, 256]))
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (4, 84, 84),
        *,
        channels: Sequence[int] = (16, 32, 32),
        width: int = 1,
        num_blocks: int = 2,
        hidden: int | None = 512,
        num_experts: int | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = check_in_shape(in_shape)
        check_not_empty("channels", channels)
        check_int("width", width, low=1)
        check_int("num_blocks", num_blocks, low=0)
        stages: list[nn.Module] = []
        before, height, columns = self.in_shape
        for base in channels:
            check_int("each of channels", base, low=1)
            stages.append(_stage(before, base * width, num_blocks))
            before, height, columns = base * width, -(-height // 2), -(-columns // 2)
        self.stages = nn.Sequential(*stages, nn.ReLU())
        self.latent_shape = (before, height, columns)
        self.penultimate = Penultimate(self.latent_shape, hidden=hidden, num_experts=num_experts)
        self.num_features = self.penultimate.num_features
        initialize(self)

    def latent(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch channels rows cols"]:
        """Return the output of the stages, of ``latent_shape`` for each image."""
        return self.stages(as_images(x, self.in_shape, next(self.parameters()).dtype))

    def forward(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Return features of images ``[batch, channels, height, width]``; bytes are divided by 255.

        Raises:
            ValueError: If the images have another shape.
        """
        return self.penultimate(self.latent(x))


def _stage(before: int, channels: int, num_blocks: int) -> nn.Sequential:
    blocks = [_Residual(channels) for _ in range(num_blocks)]
    return nn.Sequential(nn.Conv2d(before, channels, 3, padding=1), _SamePool(), *blocks)


class _SamePool(nn.Module):
    """Max-pool 3x3 with stride 2 to ceil(size / 2), the padding's larger half at the end."""

    def forward(self, x: Tensor) -> Tensor:
        # An odd side is padded by one at each end, an even one at its end alone. Padding by the
        # pool itself is symmetric, and would shift the windows of even sides by one pixel.
        top, left = x.shape[-2] % 2, x.shape[-1] % 2
        return F.max_pool2d(F.pad(x, (left, 1, top, 1), value=float("-inf")), 3, 2)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolutions(x)
