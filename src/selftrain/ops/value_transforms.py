r"""Scalars as distributions over bins: HL-Gauss, two-hot, C51 and one-hot (arXiv 2403.03950).

A transform is a value: it says where the bins are, and turns numbers into probabilities over them
and back. Two conventions exist, and each transform has one of its own:

- *edges* (:class:`HLGauss`, :class:`OneHot`): Z bins of width :math:`w = (high - low)/Z` fill the
  support; their centres lie :math:`w/2` inside it.
- *atoms* (:class:`TwoHot`, :class:`C51`): Z points, the first and the last on the bounds.

``HLGauss(..., centers_on_bounds=True)`` puts the centres of its bins where the atoms are, so that
networks and readouts can be exchanged between all of them.

Values outside the support are clamped to it; ``clip_fraction`` says how many are. Probabilities are
float32, or float64 for values in float64, under autocast as well. Shape letters: Z bins.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Real
from torch import Tensor

from selftrain._core.checks import check_range
from selftrain.kernels._dispatch import Backend
from selftrain.ops._bins import (
    Bins,
    Grid,
    Support,
    ValueTransform,
    as_float,
    at_least_float32,
    check_probs,
)
from selftrain.ops.value_loss import categorical_cross_entropy, hl_gauss_cross_entropy

__all__ = ["C51", "Grid", "HLGauss", "OneHot", "Support", "TwoHot", "ValueTransform"]


@dataclass(frozen=True, slots=True)
class HLGauss(ValueTransform):
    r"""Probabilities of a normal distribution around the value, truncated to the support.

    .. math:: t_i = \frac{\Phi((e_{i+1} - y)/\sigma) - \Phi((e_i - y)/\sigma)}
                        {\Phi((e_Z - y)/\sigma) - \Phi((e_0 - y)/\sigma)}, \qquad \sigma = r w

    This is the histogram loss (arXiv 1806.04613) as "Stop Regressing" uses it (arXiv 2403.03950,
    section 3.1). Differences of :math:`\Phi` are taken on the side where they do not cancel, so
    that every probability is exact to rounding, the smallest as well. Five or more sigma inside of
    the support the readout is the value (within 1e-5 bins at the default ratio); at a bound it lies
    0.7 bins inside, for the half outside is cut off.

    Args:
        support: Bounds and number of bins.
        sigma_ratio: Standard deviation r in units of the bin width, positive. The readout is biased
            below about 0.7 (3e-3 bins at 0.5, 0.09 at 0.25).
        centers_on_bounds: Widen the bins so that the first and last centre lie on the bounds, as
            the atoms of :class:`TwoHot` and :class:`C51` do.
        scalar: Applied before the bins and undone behind them.

    Raises:
        ValueError: If ``sigma_ratio`` is not in [1e-6, 1e6].
        TypeError: If an argument is of another kind.

    Example:
        >>> transform = HLGauss(Support(-10.0, 10.0, 51))
        >>> transform.decode(transform.encode(torch.tensor([1.5, -3.0])))
        tensor([ 1.5000, -3.0000])
    """

    sigma_ratio: float = 0.75
    centers_on_bounds: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        ValueTransform.__post_init__(self)
        # Beyond, float32 sees one bin or no slope.
        check_range("sigma_ratio", self.sigma_ratio, low=1e-6, high=1e6)

    def _make_bins(self) -> Bins:
        make = Bins.on_atoms if self.centers_on_bounds else Bins.between_edges
        return make(self.support)

    def encode(
        self, values: Real[Tensor, "*batch"], *, grid: Grid | None = None
    ) -> Float[Tensor, "*batch bins"]:
        """Return the probabilities of the bins, without gradient.

        Args:
            values: Any real numbers, integers too.
            grid: From ``grid``; None to make it anew.

        Raises:
            ValueError: If a value is NaN or infinite (seen on CPUs, outside of compiled graphs
                only; elsewhere a NaN gives a row of NaN, and infinity is clamped).
            TypeError: If the values are boolean or complex.
        """
        clamped = self.clamped("values", values)
        near, distance = self.bins.locate(clamped, self.grid_for(clamped, grid))
        return _normal_masses(near, distance, self.support.num_bins, self.sigma_ratio)

    def cross_entropy(
        self,
        logits: Float[Tensor, "*batch bins"],
        values: Real[Tensor, "*batch"],
        *,
        grid: Grid | None = None,
        backend: Backend = "auto",
    ) -> Float[Tensor, "*batch"]:
        """Return the cross entropy of the encoded values under softmax(logits), in nats.

        The same as :func:`categorical_cross_entropy` of :meth:`encode` but for rounding, without
        writing the probabilities: a value has mass in a dozen bins. The gradient with respect to
        the logits is their softmax minus the probabilities. First derivatives only.

        Args:
            logits: Of the network; the bins in the last dimension.
            values: As in :meth:`encode`; they get no gradient.
            grid: Likewise.
            backend: "auto" takes Triton on CUDA where it can, "eager" is torch.

        Raises:
            ValueError: If shapes or devices do not belong together, a value is NaN or infinite (as
                in :meth:`encode`) or the backend cannot run.
            TypeError: If the values are boolean or complex.
        """
        clamped = self.clamped("values", values)
        return hl_gauss_cross_entropy(
            logits,
            clamped,
            self.bins,
            lambda: self.grid_for(clamped, grid),
            sigma_ratio=self.sigma_ratio,
            backend=backend,
        )


@dataclass(frozen=True, slots=True)
class TwoHot(ValueTransform):
    r"""Probability on the two atoms around the value, such that their mean is the value.

    .. math:: t_i = \max(0, 1 - |y - z_i| / d), \qquad \sum_i t_i z_i = y

    Args:
        support: Bounds and number of atoms, the first and the last on the bounds.
        scalar: Applied before the bins and undone behind them.

    Raises:
        TypeError: If an argument is of another kind.

    Example:
        >>> TwoHot(Support(0.0, 2.0, 3)).encode(torch.tensor([0.25, 2.0]))
        tensor([[0.7500, 0.2500, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """

    def _make_bins(self) -> Bins:
        return Bins.on_atoms(self.support)

    def encode(
        self, values: Real[Tensor, "*batch"], *, grid: Grid | None = None
    ) -> Float[Tensor, "*batch bins"]:
        """Return the probabilities of the atoms; arguments and errors as ``HLGauss.encode``."""
        return _two_hot(self, values, grid)

    def cross_entropy(
        self,
        logits: Float[Tensor, "*batch bins"],
        values: Real[Tensor, "*batch"],
        *,
        grid: Grid | None = None,
        backend: Backend = "auto",
    ) -> Float[Tensor, "*batch"]:
        """Return the cross entropy of the encoded values; eager code on every device."""
        return categorical_cross_entropy(logits, self.encode(values, grid=grid))


@dataclass(frozen=True, slots=True)
class C51(ValueTransform):
    r"""A distribution of returns over atoms, and its Bellman update (arXiv 1707.06887).

    :meth:`project` makes targets of a network's own distribution at the next state;
    :meth:`encode` is the two-hot code of a known return: the update where an episode ends.

    Args:
        support: Bounds and number of atoms, the first and the last on the bounds.
        scalar: Applied before the bins and undone behind them.

    Raises:
        TypeError: If an argument is of another kind.

    Example:
        >>> transform = C51(Support(0.0, 2.0, 3))
        >>> next_probs = torch.tensor([[0.0, 0.5, 0.5]])
        >>> transform.project(next_probs, torch.tensor([0.5]), torch.tensor([0.5]))
        tensor([[0.0000, 0.7500, 0.2500]])
    """

    def _make_bins(self) -> Bins:
        return Bins.on_atoms(self.support)

    def encode(
        self, values: Real[Tensor, "*batch"], *, grid: Grid | None = None
    ) -> Float[Tensor, "*batch bins"]:
        """Return the two-hot code; arguments and errors as ``HLGauss.encode``."""
        return _two_hot(self, values, grid)

    def cross_entropy(
        self,
        logits: Float[Tensor, "*batch bins"],
        values: Real[Tensor, "*batch"],
        *,
        grid: Grid | None = None,
        backend: Backend = "auto",
    ) -> Float[Tensor, "*batch"]:
        """Return the cross entropy of the encoded values; eager code on every device."""
        return categorical_cross_entropy(logits, self.encode(values, grid=grid))

    def project(
        self,
        next_probs: Float[Tensor, "*batch bins"],
        rewards: Real[Tensor, "*batch"],
        discounts: Real[Tensor, "*batch"],
        *,
        grid: Grid | None = None,
    ) -> Float[Tensor, "*batch bins"]:
        r"""Return the distribution of :math:`r + \gamma Z'` on the atoms, without gradient.

        .. math:: t_i = \sum_j p'_j \max(0, 1 - |\hat T z_j - z_i| / d), \qquad
                  \hat T z_j = \mathrm{clip}(r + \gamma z_j)

        Algorithm 1 of the paper, in O(Z) a row. An atom that lands on another gives it all its
        mass; the mean is that of the moved and clipped atoms.

        Args:
            next_probs: Of the target network for the next action; probabilities, not logits.
            rewards: Rewards, or discounted sums of n of them; integers too.
            discounts: :math:`\gamma^n`, and 0 where the episode terminated.
            grid: From ``grid``; None to make it anew.

        Raises:
            ValueError: If shapes do not belong together, or (on CPUs, outside of compiled graphs) a
                number is NaN or infinite or a row is no distribution.
        """
        self._check_projection(next_probs, rewards, discounts)
        probs = at_least_float32(next_probs.detach())
        grid = self.grid_for(probs, grid)
        rewards, discounts = as_float("rewards", rewards), as_float("discounts", discounts)
        moved = rewards[..., None] + discounts[..., None] * self.scalar.invert(grid.centers)
        below, share = self.bins.between_centers(self.clamped("moved atoms", moved), grid)
        share = share.to(probs.dtype)
        target = torch.zeros_like(probs, memory_format=torch.contiguous_format)
        target.scatter_add_(-1, below, probs * (1 - share))
        return target.scatter_add_(-1, below + 1, probs * share)

    def _check_projection(self, next_probs: Tensor, rewards: Tensor, discounts: Tensor) -> None:
        *batch, bins = next_probs.shape
        if bins != self.support.num_bins:
            raise ValueError(
                f"next_probs must have {self.support.num_bins} bins in the last dimension, got "
                f"shape {tuple(next_probs.shape)}."
            )
        for name, tensor in (("rewards", rewards), ("discounts", discounts)):
            if list(tensor.shape) != batch:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, but next_probs has rows of shape "
                    f"{tuple(batch)}; nothing is broadcast."
                )
            if tensor.device != next_probs.device:
                raise ValueError(
                    f"{name} is on {tensor.device}, next_probs on {next_probs.device}; move one."
                )
        check_probs("next_probs", next_probs)


@dataclass(frozen=True, slots=True)
class OneHot(ValueTransform):
    """All probability in the bin that holds the value: plain classification.

    A value on the edge of two bins belongs to the lower one. The readout of the code is the bin's
    centre, up to half a bin away from the value.

    Args:
        support: Bounds and number of bins.
        scalar: Applied before the bins and undone behind them.

    Raises:
        TypeError: If an argument is of another kind.

    Example:
        >>> OneHot(Support(0.0, 3.0, 3)).encode(torch.tensor([0.5, 1.0, 1.5]))
        tensor([[1., 0., 0.],
                [1., 0., 0.],
                [0., 1., 0.]])
    """

    def _make_bins(self) -> Bins:
        return Bins.between_edges(self.support)

    def encode(
        self, values: Real[Tensor, "*batch"], *, grid: Grid | None = None
    ) -> Float[Tensor, "*batch bins"]:
        """Return the probabilities of the bins; arguments and errors as ``HLGauss.encode``."""
        clamped = self.clamped("values", values)
        self.grid_for(clamped, grid)
        bins = self.bins
        # From the edges: by the distance to a centre a tie would be a matter of rounding.
        steps = torch.arange(1, bins.num, dtype=clamped.dtype, device=clamped.device)
        index = torch.bucketize(clamped.contiguous(), bins.low + bins.step * steps)
        return torch.nn.functional.one_hot(index, bins.num).to(clamped.dtype)

    def cross_entropy(
        self,
        logits: Float[Tensor, "*batch bins"],
        values: Real[Tensor, "*batch"],
        *,
        grid: Grid | None = None,
        backend: Backend = "auto",
    ) -> Float[Tensor, "*batch"]:
        """Return the cross entropy of the encoded values; eager code on every device."""
        return categorical_cross_entropy(logits, self.encode(values, grid=grid))


def _two_hot(transform: ValueTransform, values: Tensor, grid: Grid | None) -> Tensor:
    """Return the code that spreads each value over the atoms around it."""
    clamped = transform.clamped("values", values)
    below, share = transform.bins.between_centers(clamped, transform.grid_for(clamped, grid))
    code = clamped.new_zeros((*clamped.shape, transform.support.num_bins))
    code.scatter_(-1, below[..., None], (1 - share)[..., None])
    return code.scatter_(-1, (below + 1)[..., None], share[..., None])


def _normal_masses(near: Tensor, distance: Tensor, num_bins: int, sigma_ratio: float) -> Tensor:
    """Return the mass of each bin under a normal law around ``distance`` from bin ``near``."""
    edges = torch.arange(num_bins + 1, device=near.device) - near[..., None]
    u = (edges - 0.5 - distance[..., None]) / (math.sqrt(2) * sigma_ratio)
    below, above = u[..., :-1], u[..., 1:]
    # On one side of the value erf is near 1 and its differences have no digits left; erfc has.
    tails = torch.special.erfc(u.abs())
    outer = (tails[..., 1:] - tails[..., :-1]).abs()
    inner = torch.special.erf(above) - torch.special.erf(below)
    mass = torch.where((below > 0.5) | (above < -0.5), outer, inner)
    return mass / mass.sum(-1, keepdim=True)
