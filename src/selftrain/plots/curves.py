"""Curves over steps, and what is paid against what is gained."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from selftrain._core.checks import check_choice, check_not_empty, check_range
from selftrain.plots._style import COLORS, FAINT, GRID, INK, check_length, legend, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "optimizer step",
    title: str = "",
    smoothing: float = 0.0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw one line for each curve, over its steps.

    Args:
        curves: For each label, the steps and the values at them; values that are NaN leave gaps.
        ylabel: Name and unit of the values.
        xlabel: Name of the steps.
        title: A heading, or nothing.
        smoothing: Draw a local straight-line fit, in which the k-th neighbour on either side
            weighs ``smoothing ** k``, in [0, 1), with the raw line pale behind it. 0 draws the
            values as they are.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no curve, a curve's steps and values differ in number, or
            ``smoothing`` is out of range.
    """
    check_not_empty("curves", curves)
    check_range("smoothing", smoothing, low=0.0, high=1.0, high_open=True)
    for label, (steps, values) in curves.items():
        check_length(f"curves[{label!r}]", values, len(steps), "step")
    ax = styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel(xlabel, color=INK)
    for (label, (steps, values)), color in zip(curves.items(), cycle(COLORS), strict=False):
        marker = "o" if len(steps) == 1 else None
        if smoothing:
            ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        smooth = _smoothed(values, smoothing)
        ax.plot(steps, smooth, color=color, linewidth=1.8, label=label, marker=marker)
    ax.margins(x=0.02)
    if len(curves) > 1:
        legend(ax, list(curves))
    return ax


def frontier(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    baselines: Collection[str] = (),
    start: tuple[str, float, float] | None = None,
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw what is paid and what is gained, one marked line for the settings of each method.

    Args:
        curves: For each method, the costs and the gains of its settings, in order.
        xlabel: Name and unit of the costs.
        ylabel: Name and unit of the gains.
        baselines: Methods to draw dashed and grey, as what the others are held against.
        start: Label, cost and gain of the point that all methods start from.
        title: A heading, or nothing.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no curve, a curve's costs and gains differ in number, or a baseline
            is no curve.
    """
    check_not_empty("curves", curves)
    for label, (costs, gains) in curves.items():
        check_length(f"curves[{label!r}]", gains, len(costs), "cost")
    for label in baselines:
        check_choice("baselines", label, curves)
    ax = styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel(xlabel, color=INK)
    ax.grid(axis="x", color=GRID, linewidth=0.8)
    colors, markers, greys = cycle(COLORS[:5]), cycle("osD^v"), cycle("xP+*")
    for label, (costs, gains) in curves.items():
        style: dict[str, Any] = {"color": next(colors), "marker": next(markers), "zorder": 3}
        if label in baselines:
            style = {"color": FAINT, "marker": next(greys), "linestyle": (0, (4, 3))}
        ax.plot(costs, gains, label=label, linewidth=1.5, markersize=5, **style)
    shown = list(curves)
    if start is not None:
        label, cost, gain = start
        style = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "linestyle": "none"}
        ax.plot([cost], [gain], color=INK, label=label, zorder=4, **style)
        shown.append(label)
    legend(ax, shown)
    return ax


def _smoothed(values: Sequence[float], smoothing: float) -> np.ndarray:
    """Return at every value a straight line fitted around it, weights ``smoothing ** distance``."""
    result = np.asarray(values, dtype=np.float64).copy()
    known = np.isfinite(result)
    if not smoothing or known.sum() < 3:
        return result
    reach = min(len(result) - 1, math.ceil(math.log(1e-3) / math.log(smoothing)))
    distance = np.arange(-reach, reach + 1)
    inner = slice(reach, reach + len(result))
    filled = np.where(known, result, 0.0)
    weights = [smoothing ** np.abs(distance) * distance**i for i in range(3)]
    s0, s1, s2 = (np.convolve(known, w)[inner][known] for w in weights)
    t0, t1 = (np.convolve(filled, w)[inner][known] for w in weights[:2])
    # A mean would bend the steep start of a loss curve down; a line does not. Where a value has
    # no neighbour in reach, there is only the mean.
    det = s0 * s2 - s1**2
    lonely = det < 1e-9
    line = (s2 * t0 - s1 * t1) / np.where(lonely, 1.0, det)
    result[known] = np.where(lonely, t0 / s0, line)
    return result
