"""Exact integration of a black box over uniforms that it compares with thresholds.

The box maps points of the unit cube to labels. It is assumed to be constant on boxes with sides
parallel to the axes; the sides are found by bisection to the last bit. Where one lies may depend on
the axes before it. What is assumed is also checked, at random points.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ALMOST_ONE = 1 - 2.0**-52
"""The largest uniform that :func:`selftrain.ops.uniform` returns."""

Label = Callable[[Tensor, Tensor], Tensor]
"""Maps rows ``[n]`` and points ``[n, axes]`` to labels, int64 ``[n]``."""

_SCAN = torch.tensor([0, 0.25, 0.5, 0.75, ALMOST_ONE], dtype=torch.float64)
_FINEST = 2.0**-53
_MOST_CHANGES = 64  # of the label along one line; a verifier has as many as tokens, at the most


class Boxes(NamedTuple):
    """A partition of the unit cube, for each row, into boxes on which the label is constant."""

    row: Tensor
    """The row that a box belongs to ``[boxes]``."""
    volume: Tensor
    """Its volume, float64 ``[boxes]``; boxes of hardly any, such as u = 0, are listed too."""
    label: Tensor
    """The label on it ``[boxes]``."""


def integrate(label: Label, num_rows: int, num_axes: int) -> Boxes:
    """Partition the unit cube of ``num_axes`` uniforms for each of ``num_rows`` rows.

    A change of the label is seen if, with all later axes at 0 or all at almost 1, it shows between
    two quarters: it is enough that the label, or each part of it, is monotone along the axis.

    Raises:
        ValueError: If the label is not constant on the boxes so found.
    """
    row = torch.arange(num_rows)
    low = torch.zeros(num_rows, num_axes, dtype=torch.float64)
    high = torch.ones_like(low)
    for axis in range(num_axes):
        box, cuts = _cuts(label, row, _inside(low, high), axis)
        parent, start, end = _split(len(row), box, cuts)
        row, low, high = row[parent], low[parent], high[parent]
        low[:, axis], high[:, axis] = start, end
    found = label(row, _inside(low, high))
    _check_constant(label, row, low, high, found)
    return Boxes(row, (high - low).prod(-1), found)


def _inside(low: Tensor, high: Tensor) -> Tensor:
    """Return a point of each box: its centre, along a side of hardly any length its lower end."""
    return torch.where(high - low > 1e-12, (low + high) / 2, low)


def _cuts(label: Label, row: Tensor, points: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return where the label changes along ``axis``, and in which box."""
    later = torch.tensor([0.0, ALMOST_ONE], dtype=torch.float64)
    later = later[: 1 if axis == points.shape[1] - 1 else 2]
    probes = points.unsqueeze(1).repeat(1, len(later), 1)
    probes[:, :, axis + 1 :] = later.view(1, -1, 1)
    probes = probes.flatten(0, 1)  # [boxes * 2, axes]

    def at(probe: Tensor, u: Tensor) -> Tensor:
        where = probes[probe]
        where[:, axis] = u
        return label(row[probe // len(later)], where)

    num_probes = len(probes)
    probe = torch.arange(num_probes).repeat_interleave(len(_SCAN))
    seen = at(probe, _SCAN.repeat(num_probes)).view(num_probes, -1)
    probe, place = (seen[:, 1:] != seen[:, :-1]).nonzero(as_tuple=True)
    low, high = _SCAN[place], _SCAN[place + 1]
    label_low, label_high = seen[probe, place], seen[probe, place + 1]
    while len(low) and (high - low).max() > _FINEST:
        middle = (low + high) / 2
        between = at(probe, middle)
        left, right = between != label_low, between != label_high
        low, high = torch.cat([low[left], middle[right]]), torch.cat([middle[left], high[right]])
        label_low = torch.cat([label_low[left], between[right]])
        label_high = torch.cat([between[left], label_high[right]])
        probe = torch.cat([probe[left], probe[right]])
        if len(probe) > _MOST_CHANGES * num_probes:
            raise ValueError(
                "the outcome changes too often along one uniform for an outcome of comparisons: "
                "is there noise that is not passed in?"
            )
    return probe // len(later), high


def _split(num_boxes: int, box: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut boxes along one axis; return the box that each part is of, and its ends."""
    box = torch.cat([torch.arange(num_boxes), box])
    start = torch.cat([torch.zeros(num_boxes, dtype=torch.float64), cuts])
    order = start.argsort(stable=True)
    order = order[box[order].argsort(stable=True)]
    box, start = box[order], start[order]
    # Both probes find the same cut, up to rounding; but u = 0 stays apart from what follows it.
    same = (box[1:] == box[:-1]) & (start[1:] - start[:-1] < 1e-15) & (start[:-1] > 0)
    keep = torch.nn.functional.pad(~same, (1, 0), value=True)
    box, start = box[keep], start[keep]
    end = torch.ones_like(start)
    end[:-1] = torch.where(box[1:] == box[:-1], start[1:], 1.0)
    return box, start, end


def _check_constant(label: Label, row: Tensor, low: Tensor, high: Tensor, found: Tensor) -> None:
    rng = torch.Generator().manual_seed(0)
    wide = ((high - low) > 1e-9).all(-1)
    row, low, high, found = row[wide], low[wide], high[wide], found[wide]
    for _ in range(4):
        share = torch.rand(low.shape, generator=rng, dtype=torch.float64)
        if (label(row, low + (high - low) * share) != found).any():
            raise ValueError(
                "the outcome is not decided by comparing each uniform with a threshold: it varies "
                "where no comparison of single uniforms changes."
            )
