"""ResNet encoders at any width, with group norm."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from selftrain._core.checks import check_choice, check_int
from selftrain.nn._conv import as_images, check_in_shape

__all__ = ["ResNetEncoder"]

# Blocks of each of the four stages, by number of layers (arXiv 1512.03385, table 1).
_STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_BOTTLENECK_FROM = 50
_NUM_GROUPS = 32


class ResNetEncoder(nn.Module):
    """The ResNets of arXiv 1512.03385 with group norm (arXiv 1803.08494) in place of batch norm.

    A value network has a target network beside it and sees states that its own policy chooses, so
    that statistics of batches differ between the two; groups of channels need none. The image is
    halved five times, so 32 pixels a side are the least that leaves more than one place.

    Args:
        in_shape: Channels, height and width; a stack of gray frames has the frames as channels.
        depth: Number of layers: 18, 34, 50, 101 or 152.
        width: Multiplies the channels.
        spatial_embeddings: Weighted sums over places that are learned for each channel, as in
            scaled Q-learning (arXiv 2211.15144); None takes the mean over places, as usual.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If ``depth`` is another, or a number is below 1.

    Example:
        >>> encoder = ResNetEncoder((4, 84, 84), depth=18)
        >>> encoder(torch.zeros(1, 4, 84, 84)).shape
        torch.Size([1, 512])
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (4, 84, 84),
        *,
        depth: int = 18,
        width: int = 1,
        spatial_embeddings: int | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = check_in_shape(in_shape)
        check_choice("depth", depth, tuple(_STAGES))
        check_int("width", width, low=1)
        block = _Bottleneck if depth >= _BOTTLENECK_FROM else _Basic
        before, base = 64 * width, 64 * width
        parts = [_convolution(in_shape[0], before, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        for stage, num_blocks in enumerate(_STAGES[depth]):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                parts.append(block(before, base * 2**stage, stride))
                before = base * 2**stage * block.expansion
        self.stages = nn.Sequential(*parts)
        self.latent_shape = (before, *(math.ceil(side / 32) for side in self.in_shape[1:]))
        self.embedding: nn.Parameter | None = None
        self.num_features = before
        if spatial_embeddings is not None:
            check_int("spatial_embeddings", spatial_embeddings, low=1)
            self.embedding = nn.Parameter(torch.empty(*self.latent_shape, spatial_embeddings))
            # Sums of places of unit variance have unit variance.
            nn.init.normal_(self.embedding, std=math.prod(self.latent_shape[1:]) ** -0.5)
            self.num_features = before * spatial_embeddings
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def latent(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch channels rows cols"]:
        """Return the output of the stages, of ``latent_shape`` for each image."""
        return self.stages(as_images(x, self.in_shape, next(self.parameters()).dtype))

    def forward(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Return features of images ``[batch, channels, height, width]``; bytes are divided by 255.

        Raises:
            ValueError: If the images have another shape.
        """
        latent = self.latent(x)
        if self.embedding is None:
            return latent.mean((2, 3))
        return torch.einsum("bchw,chwf->bcf", latent, self.embedding).flatten(1)


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution that pads to keep the size (before its stride), and its norm."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(_NUM_GROUPS, after))


class _Basic(nn.Module):
    """Two convolutions 3x3 beside a shortcut."""

    expansion = 1

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _convolution(before, channels, 3, stride),
            nn.ReLU(),
            _convolution(channels, channels, 3),
        )
        self.shortcut = _shortcut(before, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.convolutions(x))


class _Bottleneck(nn.Module):
    """A convolution 3x3 between two of 1x1, beside a shortcut; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        after = channels * self.expansion
        self.convolutions = nn.Sequential(
            _convolution(before, channels, 1),
            nn.ReLU(),
            _convolution(channels, channels, 3, stride),
            nn.ReLU(),
            _convolution(channels, after, 1),
        )
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.convolutions(x))


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return _convolution(before, after, 1, stride)
