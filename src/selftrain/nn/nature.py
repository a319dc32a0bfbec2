"""The convolutional encoder of DQN."""

from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from selftrain._core.checks import check_int, check_not_empty
from selftrain.nn._conv import Penultimate, as_images, check_in_shape, initialize

__all__ = ["NatureEncoder"]


class NatureEncoder(nn.Module):
    """Plain convolutions and a dense layer, as DQN had them (Mnih et al., Nature 2015).

    Weights are drawn Xavier-uniform and biases are zero. The defaults need images of at least 36 by
    36 pixels; for smaller ones give smaller kernels, such as ``layers=((16, 3, 1), (32, 3, 1))``.

    Args:
        in_shape: Channels, height and width; a stack of gray frames has the frames as channels.
        layers: Channels, kernel size and stride of each convolution; none is padded.
        hidden: Outputs of the dense layer, or of each expert; None leaves the layer out.
        num_experts: Put a :class:`SoftMoE` of so many experts in place of the dense layer, whose
            tokens are the places of the last convolution.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is below 1, or the images are too small for the layers.

    Example:
        >>> import torch
        >>> NatureEncoder()(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int] = (4, 84, 84),
        *,
        layers: Sequence[tuple[int, int, int]] = ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
        hidden: int | None = 512,
        num_experts: int | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = check_in_shape(in_shape)
        check_not_empty("layers", layers)
        convolutions: list[nn.Module] = []
        channels, height, width = self.in_shape
        for layer in layers:
            for name, number in zip(("channels", "kernel", "stride"), layer, strict=True):
                check_int(f"{name} of layers", number, low=1)
            after, kernel, stride = layer
            if kernel > min(height, width):
                raise ValueError(
                    f"a kernel of {kernel} does not fit what is left of images of shape "
                    f"{self.in_shape}, {height} by {width}; give layers with smaller kernels or "
                    "strides, or use an ImpalaEncoder, which takes any size."
                )
            convolutions += [nn.Conv2d(channels, after, kernel, stride), nn.ReLU()]
            channels = after
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.convolutions = nn.Sequential(*convolutions)
        self.latent_shape = (channels, height, width)
        self.penultimate = Penultimate(self.latent_shape, hidden=hidden, num_experts=num_experts)
        self.num_features = self.penultimate.num_features
        initialize(self)

    def latent(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch channels rows cols"]:
        """Return the output of the convolutions, of ``latent_shape`` for each image."""
        return self.convolutions(as_images(x, self.in_shape, next(self.parameters()).dtype))

    def forward(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Return features of images ``[batch, channels, height, width]``; bytes are divided by 255.

        Raises:
            ValueError: If the images have another shape.
        """
        return self.penultimate(self.latent(x))
