r"""Monotone maps that bring values of many magnitudes into one support, and their inverses.

A head with such a map predicts :math:`h(x)`: the support's bounds are bounds of :math:`h(x)`, and
the readout is :math:`h^{-1}` of the expected bin. Both directions are written without differences
of nearly equal numbers, so that they undo each other to rounding at every magnitude.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from selftrain._core.checks import check_range

__all__ = ["Identity", "MuZeroScale", "ScalarTransform", "Symlog"]


@runtime_checkable
class ScalarTransform(Protocol):
    """An odd, strictly increasing map of the real line onto itself, with its inverse."""

    def apply(self, x: Tensor) -> Tensor:
        """Return h(x) of every element."""

    def invert(self, y: Tensor) -> Tensor:
        """Return the x with h(x) = y of every element."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Leaves values as they are.

    Example:
        >>> import torch
        >>> Identity().apply(torch.tensor(3.0))
        tensor(3.)
    """

    def apply(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return ``x`` itself."""
        return x

    def invert(self, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return ``y`` itself."""
        return y


@dataclass(frozen=True, slots=True)
class Symlog:
    r"""The symmetric logarithm (DreamerV3, arXiv 2301.04104, equation 9).

    .. math:: h(x) = \mathrm{sign}(x) \log(1 + |x|), \qquad
              h^{-1}(y) = \mathrm{sign}(y) (e^{|y|} - 1)

    Example:
        >>> import torch
        >>> Symlog().apply(torch.tensor([0.0, -(torch.e - 1)]))
        tensor([ 0., -1.])
    """

    def apply(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return h(x)."""
        return x.sign() * x.abs().log1p()

    def invert(self, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the x with h(x) = y; infinite where that exceeds the type."""
        return y.sign() * y.abs().expm1()


@dataclass(frozen=True, slots=True)
class MuZeroScale:
    r"""The signed square root with a linear part (arXiv 1805.11593; MuZero, arXiv 1911.08265).

    .. math:: h(x) = \mathrm{sign}(x) (\sqrt{|x| + 1} - 1) + \epsilon x

    Args:
        epsilon: Slope of the linear part, at least 0.

    Raises:
        ValueError: If ``epsilon`` is negative or infinite.

    Example:
        >>> import torch
        >>> MuZeroScale(epsilon=0.0).apply(torch.tensor([8.0, -3.0]))
        tensor([ 2., -1.])
    """

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, low=0.0, high=float("inf"), high_open=True)

    def apply(self, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return h(x)."""
        # sqrt(a + 1) - 1 would lose small a.
        return x / ((x.abs() + 1).sqrt() + 1) + self.epsilon * x

    def invert(self, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        r"""Return the x with h(x) = y.

        With :math:`r = \sqrt{|x| + 1}`, :math:`\epsilon r^2 + r = |y| + 1 + \epsilon`, and so
        :math:`r - 1 = |y| / (1 + \epsilon (r + 1))` and :math:`|x| = (r - 1)(r + 1)`: the published
        formula without its two cancellations, which cost float32 all digits near 0.
        """
        right = y.abs() + (1 + self.epsilon)
        r = 2 * right / (1 + (1 + 4 * self.epsilon * right).sqrt())
        return y * (r + 1) / (1 + self.epsilon * (r + 1))
