"""Bars in groups, and measurements beside predictions."""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from selftrain._core.checks import check_not_empty
from selftrain.plots._style import COLORS, INK, check_length, legend, reference_line, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PREDICTED = "predicted by the cost model"


def grouped_bars(
    groups: Sequence[str],
    series: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    ylabel: str,
    errors: Sequence[Sequence[float]] | None = None,
    title: str = "",
    reference: tuple[str, float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a bar for each series in every group, with its value written above it.

    Args:
        groups: Labels along the axis, for example the drafts.
        series: Labels of the bars within a group, for example greedy and T=1.
        values: ``values[s][g]`` is the height of series ``s`` in group ``g``.
        ylabel: Name and unit of the values.
        errors: Half-lengths of the error bars, shaped like ``values``.
        title: A heading, or nothing.
        reference: Label and height of a dashed horizontal line.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no group or series, or the shapes do not fit.
    """
    check_not_empty("groups", groups)
    check_not_empty("series", series)
    for name, table in (("values", values), ("errors", errors)):
        if table is not None:
            check_length(name, table, len(series), "series")
            for label, row in zip(series, table, strict=True):
                check_length(f"{name} of {label!r}", row, len(groups), "group")
    ax = styled(ax, ylabel=ylabel, title=title)
    width = 0.78 / len(series)
    for s, (label, color) in enumerate(zip(series, cycle(COLORS), strict=False)):
        x = np.arange(len(groups)) + (s - (len(series) - 1) / 2) * width
        _bars(ax, x, values[s], errors[s] if errors else None, width * 0.92, color, label)
    _finish_bars(ax, groups)
    shown = list(series) if len(series) > 1 else []
    if reference is not None:
        reference_line(ax, *reference)
        shown.append(reference[0])
    if shown:
        legend(ax, shown)
    return ax


def measured_and_predicted(
    labels: Sequence[str],
    measured: Sequence[float],
    predicted: Sequence[float | None],
    *,
    ylabel: str,
    errors: Sequence[float] | None = None,
    title: str = "",
    reference: tuple[str, float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw measurements as bars and what a model predicted for them as markers.

    Args:
        labels: Labels along the axis.
        measured: Heights of the bars.
        predicted: Heights of the markers; None where nothing was predicted.
        ylabel: Name and unit of the values.
        errors: Half-lengths of the error bars of ``measured``.
        title: A heading, or nothing.
        reference: Label and height of a dashed horizontal line, for example plain decoding.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no label or no prediction, or the lengths differ.
    """
    check_not_empty("labels", labels)
    if all(value is None for value in predicted):
        raise ValueError("predicted has no number; draw measurements alone with grouped_bars.")
    for name, row in (("measured", measured), ("predicted", predicted), ("errors", errors)):
        if row is not None:
            check_length(name, row, len(labels), "label")
    ax = styled(ax, ylabel=ylabel, title=title)
    x = np.arange(len(labels))
    _bars(ax, x - 0.1, measured, errors, 0.46, COLORS[0], "measured")
    shown = ["measured", _PREDICTED]
    points = [(i + 0.22, value) for i, value in enumerate(predicted) if value is not None]
    style = {"marker": "D", "markersize": 6, "markeredgecolor": "white", "linestyle": "none"}
    ax.plot(*zip(*points, strict=True), color=COLORS[1], label=_PREDICTED, zorder=4, **style)
    for point in points:
        _value(ax, _short(point[1]), point, offset=(7, 0))
    _finish_bars(ax, labels)
    if reference is not None:
        reference_line(ax, *reference)
        shown.append(reference[0])
    legend(ax, shown)
    return ax


def _bars(
    ax: "Axes",
    x: np.ndarray,
    heights: Sequence[float],
    errors: Sequence[float] | None,
    width: float,
    color: str,
    label: str,
) -> None:
    ax.bar(x, heights, width, color=color, label=label, zorder=2)
    if errors is not None:
        ax.errorbar(x, heights, errors, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
    for i, height in enumerate(heights):
        top = height + (errors[i] if errors is not None else 0.0)
        _value(ax, _short(height), (float(x[i]), top), offset=(0, 3))


def _value(ax: "Axes", text: str, at: tuple[float, float], *, offset: tuple[int, int]) -> None:
    """Write a number above a point, or beside it where the offset is sideways (in points)."""
    ha, va = ("left", "center") if offset[0] else ("center", "bottom")
    style = {"textcoords": "offset points", "fontsize": 8.5, "color": INK, "zorder": 5}
    ax.annotate(text, at, xytext=offset, ha=ha, va=va, **style)


def _finish_bars(ax: "Axes", labels: Sequence[str]) -> None:
    ax.set_xticks(np.arange(len(labels)), labels)
    ax.tick_params(axis="x", length=0, pad=6)
    ax.set_xlim(-0.55, len(labels) - 0.45)
    ax.margins(y=0.12)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))


def _short(value: float) -> str:
    """Write a number with about three digits, and never in powers of ten below a million."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"
