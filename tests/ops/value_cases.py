"""Transforms and reference forms that several test files share."""

import itertools
import math

import torch

from selftrain.ops import C51, HLGauss, MuZeroScale, OneHot, Support, Symlog, TwoHot

SUPPORT = Support(-10.0, 10.0, 51)
TRANSFORMS = [
    HLGauss(SUPPORT),
    HLGauss(SUPPORT, sigma_ratio=2.0),
    HLGauss(SUPPORT, centers_on_bounds=True),
    HLGauss(Support(0.0, 1.0, 128)),
    HLGauss(Support(-3.0, 3.0, 5), scalar=Symlog()),
    TwoHot(SUPPORT),
    TwoHot(Support(-4.0, 20.0, 2), scalar=MuZeroScale()),
    C51(SUPPORT),
    C51(Support(-3.0, 3.0, 31), scalar=Symlog()),
    OneHot(SUPPORT),
    OneHot(Support(0.0, 1.0, 128), scalar=MuZeroScale()),
]
COMPILED = [
    HLGauss(SUPPORT),
    TwoHot(Support(-3.0, 3.0, 31), scalar=Symlog()),
    OneHot(Support(0.0, 1.0, 128), scalar=MuZeroScale()),
]
"""One of each kind of code, for what takes seconds a transform."""


def centers_of(transform):
    return transform.grid(dtype=torch.float64).centers


def values_for(transform, num=400, *, beyond=0.2, dtype=torch.float64):
    """Return values over the support and a share of its length beyond."""
    low, high = transform.support.low, transform.support.high
    margin = beyond * (high - low)
    moved = torch.linspace(low - margin, high + margin, num, dtype=torch.float64)
    return transform.scalar.invert(moved).to(dtype)


def hl_gauss_by_definition(y, edges, sigma):
    """Return the truncated normal's masses from scipy's distribution function, one value."""
    from scipy.stats import norm

    edges = edges.numpy()
    masses = []
    for below, above in itertools.pairwise(edges):
        # On the right of y by the survival function: there the other one is rounded to 1.
        if below > y:
            masses.append(norm.sf(below, y, sigma) - norm.sf(above, y, sigma))
        else:
            masses.append(norm.cdf(above, y, sigma) - norm.cdf(below, y, sigma))
    return torch.tensor(masses, dtype=torch.float64) / math.fsum(masses)


def c51_dense(next_probs, rewards, discounts, atoms):
    """Return the projection as the double sum of its definition."""
    spacing = atoms[1] - atoms[0]
    moved = rewards[..., None] + discounts[..., None] * atoms
    moved = moved.clamp(atoms[0], atoms[-1])
    share = (1 - (moved[..., None, :] - atoms[:, None]).abs() / spacing).clamp(0, 1)
    return (share * next_probs[..., None, :]).sum(-1)
