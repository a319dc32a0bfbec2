"""Value learning: learning curves, the width of HL-Gauss, the bias of readouts."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from selftrain._core.checks import check_choice, check_not_empty
from selftrain.plots._style import COLORS, INK, check_length, legend, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = Sequence[float] | np.ndarray
_MARKERS = "osD^vP"


def learning_curves(
    curves: Mapping[str, tuple[Numbers, Numbers]],
    *,
    intervals: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    ylabel: str,
    xlabel: str = "environment step",
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw what several methods score over their steps, with bands for intervals.

    Args:
        curves: For each method the steps, and the mean of its runs at them.
        intervals: For some methods the lower and upper ends at the same steps.
        ylabel: Name of the score.
        xlabel: Name of the steps.
        title: A heading, or nothing.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no curve, lengths differ, or intervals belong to no curve.
    """
    ax = styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel(xlabel, color=INK)
    _draw(ax, curves, intervals, markers=False)
    return ax


def sigma_sweep(
    ratios: Numbers,
    errors: Mapping[str, Numbers],
    *,
    intervals: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    baseline: tuple[str, float] | None = None,
    ylabel: str = "test error",
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the error of HL-Gauss against its standard deviation, one line for a number of bins.

    Args:
        ratios: Standard deviations in bins, positive.
        errors: For each line its errors at the ratios.
        intervals: For some lines the lower and upper ends.
        baseline: Label and error of what is compared with, drawn as a dashed line.
        ylabel: Name of the error.
        title: A heading, or nothing.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no line, lengths differ, a ratio is not positive, or intervals
            belong to no line.
    """
    ratios = np.asarray(ratios, dtype=np.float64)
    if not (ratios > 0).all():
        raise ValueError(f"ratios must be positive, got {ratios.tolist()}.")
    ax = styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel("sigma in bins", color=INK)
    ax.set_xscale("log", base=2)
    if baseline is not None:
        ax.axhline(baseline[1], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=baseline[0])
    shown = () if baseline is None else (baseline[0],)
    curves = {label: (ratios, row) for label, row in errors.items()}
    _draw(ax, curves, intervals, markers=True, shown=shown)
    ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    ax.set_xticks([], minor=True)
    return ax


def readout_bias(
    places: Numbers,
    biases: Mapping[str, Numbers],
    *,
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw by how much the readout of a value's own code misses the value, on a logarithmic scale.

    Args:
        places: Where the values lie, in bins from the lower bound.
        biases: For each transform the signed differences of readout and value, in bins.
        title: A heading, or nothing.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no transform or lengths differ.
    """
    ax = styled(ax, ylabel="|readout - value| in bins", title=title)
    ax.set_xlabel("distance of the value from the bound, in bins", color=INK)
    ax.set_yscale("log")
    # Zero has no logarithm; below this only rounding is seen.
    curves = {
        label: (places, np.maximum(np.abs(np.asarray(row, dtype=np.float64)), 1e-8))
        for label, row in biases.items()
    }
    _draw(ax, curves, None, markers=False)
    return ax


def _draw(
    ax: "Axes",
    curves: Mapping[str, tuple[Numbers, Numbers]],
    intervals: Mapping[str, tuple[Numbers, Numbers]] | None,
    *,
    markers: bool,
    shown: Sequence[str] = (),
) -> None:
    """Draw lines with bands, and a legend if there is something to tell apart."""
    check_not_empty("curves", curves)
    for label, (steps, values) in curves.items():
        check_length(f"curves[{label!r}]", values, len(steps), "step")
    for label, ends in (intervals or {}).items():
        check_choice("intervals", label, curves)
        for end in ends:
            check_length(f"intervals[{label!r}]", end, len(curves[label][0]), "step")
    styles = zip(curves.items(), cycle(COLORS), cycle(_MARKERS), strict=False)
    for (label, (steps, values)), color, marker in styles:
        if intervals and label in intervals:
            low, high = intervals[label]
            ax.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        marked = marker if markers or len(steps) == 1 else None
        ax.plot(
            steps, values, color=color, marker=marked, markersize=4.5, linewidth=1.8, label=label
        )
    ax.margins(x=0.02)
    if len(curves) + len(shown) > 1:
        legend(ax, [*shown, *curves])
