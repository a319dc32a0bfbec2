"""Equally spaced bins, where values lie among them, and what all transforms do alike.

Shape letters: Z bins.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from selftrain._core.checks import check_int, check_range
from selftrain.kernels._dispatch import Backend
from selftrain.ops.scalar_transforms import Identity, ScalarTransform

# float32 holds bounds and products of them.
_LARGEST = 1e18
# Bins narrower than this share of the bounds are not told apart by float32 values.
_LEAST_STEP = 2.0**-21
# How far the probabilities of a target may sum from 1: half precision was allowed to make them.
_MOST_EXCESS = 1e-2


@dataclass(frozen=True, slots=True)
class Support:
    """The interval of values that a categorical head can express, and its number of bins.

    With a scalar transform the bounds are those of the transformed values.

    Args:
        low: The lower bound.
        high: The upper bound, above ``low``.
        num_bins: At least 2.

    Raises:
        ValueError: If a bound is not finite, they are not in order, or the bins would be too narrow
            for float32 to tell their values apart.
        TypeError: If a bound is not a number or ``num_bins`` is not an integer.

    Example:
        >>> Support(-10.0, 10.0, 51)
        Support(low=-10.0, high=10.0, num_bins=51)
    """

    low: float
    high: float
    num_bins: int

    def __post_init__(self) -> None:
        check_range("low", self.low, low=-_LARGEST, high=_LARGEST)
        check_range("high", self.high, low=-_LARGEST, high=_LARGEST)
        check_int("num_bins", self.num_bins, low=2)
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low={self.low} and high={self.high}.")
        step, size = (self.high - self.low) / self.num_bins, max(abs(self.low), abs(self.high))
        if step < _LEAST_STEP * size:
            raise ValueError(
                f"num_bins={self.num_bins} bins between {self.low} and {self.high} are {step:.3g} "
                "wide, which float32 does not resolve there. Use fewer, or subtract an offset from "
                "the values."
            )


class Grid(NamedTuple):
    """The centres of a transform's bins as tensors, which a module may hold as buffers."""

    centers: Tensor
    """``[bins]``: the values of the bins, behind the scalar transform."""
    rest: Tensor
    """``[bins]``: what rounding took from ``centers``. A float32 centre at 10 is off by up to 2e-6
    of a bin of 0.2, which is more than the rounding of the probabilities themselves."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Where the bins are: the clamped range, the first centre, the distance of centres."""

    low: float
    high: float
    first: float
    step: float
    num: int
    inner: tuple[float, float]
    """The outermost float32 numbers between the bounds. The bounds rounded may lie outside, by more
    than a narrow normal law reaches."""

    @classmethod
    def between_edges(cls, support: Support) -> "Bins":
        """Return bins that fill the support."""
        width = (support.high - support.low) / support.num_bins
        return cls._make(support, support.low + width / 2, width)

    @classmethod
    def on_atoms(cls, support: Support) -> "Bins":
        """Return bins whose first and last centres are the bounds."""
        return cls._make(
            support, support.low, (support.high - support.low) / (support.num_bins - 1)
        )

    @classmethod
    def _make(cls, support: Support, first: float, step: float) -> "Bins":
        low, high = support.low, support.high
        inner = _float32_inside(low, math.inf), _float32_inside(high, -math.inf)
        return cls(low, high, first, step, support.num_bins, inner)

    def clamp(self, values: Tensor) -> Tensor:
        """Return the nearest numbers of the type that lie within the bounds."""
        low, high = (self.low, self.high) if values.dtype == torch.float64 else self.inner
        return values.clamp(low, high)

    def grid(self, dtype: torch.dtype, device: torch.device | str | None) -> Grid:
        """Return the centres in ``dtype``, computed in float64."""
        where = torch.device(device or "cpu")
        exact = torch.device("cpu") if where.type == "mps" else where  # which has no float64
        wide = self.first + self.step * torch.arange(self.num, dtype=torch.float64, device=exact)
        centers = wide.to(dtype)
        return Grid(centers.to(where), (wide - centers).to(dtype).to(where))

    def locate(self, clamped: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the bin whose centre is nearest, and the distance to its centre in bins.

        The distance is a difference of neighbours, so it is as exact as the value is. A NaN keeps
        a distance of NaN, at some bin.
        """
        near = ((clamped - self.first) / self.step).round().long().clamp(0, self.num - 1)
        distance = (clamped - grid.centers[near]) - grid.rest[near]
        return near, distance / self.step

    def between_centers(self, clamped: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the bin below and the share in [0, 1] of the way from its centre to the next."""
        near, distance = self.locate(clamped, grid)
        below = (near - (distance < 0).long()).clamp(0, self.num - 2)
        return below, (distance + (near - below)).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class ValueTransform(ABC):
    """What the transforms share: a support, a scalar transform, the readout.

    A transform of your own says where its bins are, and how to encode.
    """

    support: Support
    scalar: ScalarTransform = field(default=Identity(), kw_only=True)
    bins: Bins = field(init=False, repr=False, compare=False)
    """Where the bins are."""

    def __post_init__(self) -> None:
        if not isinstance(self.support, Support):
            raise TypeError(
                f"support must be a Support, got {self.support!r}; write Support(low, high, "
                "num_bins)."
            )
        if isinstance(self.scalar, type) or not isinstance(self.scalar, ScalarTransform):
            raise TypeError(
                f"scalar must be an object with apply and invert, such as Symlog(), got "
                f"{self.scalar!r}."
            )
        object.__setattr__(self, "bins", self._make_bins())

    @abstractmethod
    def _make_bins(self) -> Bins:
        """Return where the bins are."""

    @abstractmethod
    def encode(self, values: Tensor, *, grid: Grid | None = None) -> Tensor:
        """Return probabilities ``[*batch, bins]`` for values ``[*batch]``."""

    @abstractmethod
    def cross_entropy(
        self,
        logits: Tensor,
        values: Tensor,
        *,
        grid: Grid | None = None,
        backend: Backend = "auto",
    ) -> Tensor:
        """Return the cross entropy ``[*batch]`` of the encoded values under softmax(logits)."""

    def grid(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Grid:
        """Return the centres of the bins, for a module to hold as buffers."""
        return self.bins.grid(dtype, device)

    def decode(
        self, probs: Float[Tensor, "*batch bins"], *, grid: Grid | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the expected centre of the bins, taken back through the scalar transform.

        Args:
            probs: Probabilities over the last dimension; the gradient flows to them.
            grid: From :meth:`grid`; None to make it anew.

        Raises:
            ValueError: If the last dimension is not the number of bins.
        """
        if probs.shape[-1:] != (self.support.num_bins,):
            raise ValueError(
                f"probs must have {self.support.num_bins} bins in the last dimension, got shape "
                f"{tuple(probs.shape)}."
            )
        probs = at_least_float32(probs)
        # A product of matrices would be rounded to half precision under autocast, and to TF32
        # where that is allowed; this is not.
        return self.scalar.invert((probs * self.grid_for(probs, grid).centers).sum(-1))

    def clip_fraction(self, values: Real[Tensor, "*batch"]) -> Float[Tensor, ""]:
        """Return the share of values outside the support, which are clamped; 0 of none."""
        moved = self.scalar.apply(as_float("values", values))
        outside = (moved < self.support.low) | (moved > self.support.high)
        return outside.sum() / max(outside.numel(), 1)

    def clamped(self, name: str, values: Tensor) -> Tensor:
        """Return what the bins are compared with: checked, transformed, clamped, not in half."""
        return self.bins.clamp(self.scalar.apply(as_float(name, values)))

    def grid_for(self, values: Tensor, grid: Grid | None) -> Grid:
        """Return ``grid``, or one made where ``values`` is."""
        if grid is None:
            return self.grid(dtype=values.dtype, device=values.device)
        if grid.centers.device != values.device:
            raise ValueError(
                f"the values are on {values.device}, the grid on {grid.centers.device}; move one "
                "to the other (a head: head.to(device)), or leave out the grid."
            )
        return grid


def _float32_inside(bound: float, towards: float) -> float:
    rounded = np.float32(bound)
    # As Python numbers: numpy would round the bound for the comparison.
    outside = float(rounded) < bound if towards > 0 else float(rounded) > bound
    return float(np.nextafter(rounded, np.float32(towards)) if outside else rounded)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def as_float(name: str, values: Tensor) -> Tensor:
    """Return values without gradient in float32 or float64, after a look at them on CPUs.

    Elsewhere, and in compiled graphs, looking would wait for the device: there a NaN makes the
    results of its own row NaN, and an infinite value is clamped as any other.
    """
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"{name} must be real numbers, got {values.dtype}.")
    values = at_least_float32(values.detach() if values.requires_grad else values)
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass over finite values; a sum that overflows is looked at again.
        finite = math.isfinite(values.sum().item()) or bool(values.isfinite().all())
        if not finite:
            bad = int((~values.isfinite()).sum())
            raise ValueError(
                f"{name} has {bad} of {values.numel()} numbers that are NaN or infinite. They come "
                "from a diverged network or a division by zero: find where, or leave these "
                "samples out."
            )
    return values


def check_probs(name: str, probs: Tensor) -> None:
    """Raise ``ValueError`` unless each row is a distribution; on CPUs only, as ``as_float``."""
    if probs.device.type != "cpu" or torch.compiler.is_compiling() or not probs.numel():
        return
    excess = (probs.detach().float().sum(-1) - 1).abs().max().item()
    least = probs.min().item()
    if not (excess <= _MOST_EXCESS and least >= 0):  # NaN fails as well
        raise ValueError(
            f"{name} must be probabilities over the last dimension, but a row sums to 1 +- "
            f"{excess:.3g} and the least number is {least:.3g}. If they are logits, take their "
            "softmax."
        )
