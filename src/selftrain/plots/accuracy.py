"""Accuracy of sampled answers: by round of a self-training loop, and against the samples spent."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selftrain._core.checks import check_choice, check_not_empty
from selftrain.plots._style import COLORS, INK, check_length, legend, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Sequence[float | None] | np.ndarray
"""Numbers along the axis; None or NaN where there is none."""

_Numbers = NDArray[np.float64]
_MARKERS = "osD^vP"
_LEAST_SPAN = 0.1  # of the vertical axis
_DODGE = 0.05  # between the error bars of neighbouring series, in rounds


def metrics_by_round(
    rounds: Sequence[int | str],
    metrics: Mapping[str, Row],
    *,
    intervals: Mapping[str, tuple[Row, Row]] | None = None,
    train: Mapping[str, Row] | None = None,
    ylabel: str = "test problems solved",
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how metrics in [0, 1] change from round to round, with intervals, and the gap to train.

    Args:
        rounds: Labels along the axis, for example ``["base", 1, 2, 3]``.
        metrics: For each metric (pass@1, Maj@16, ...) its value by round; None or NaN where it was
            not measured.
        intervals: For some metrics the lower and upper ends by round, drawn as error bars.
        train: For some metrics their values on the training problems, drawn dashed in the same
            colour; the distance to the full line is the gap.
        ylabel: What the numbers are shares of.
        title: A heading, or nothing.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If there is no round or metric, lengths differ, intervals or training values
            belong to no metric, or an interval does not hold its value.
    """
    check_not_empty("rounds", rounds)
    table, ends = _rows(metrics, intervals, len(rounds), "round")
    seen = {} if train is None else _table("train", train, len(rounds), "round", metrics)
    ax = styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel("round", color=INK)
    shown = []
    for s, (label, values) in enumerate(table.items()):
        x = np.arange(len(rounds)) + (s - (len(table) - 1) / 2) * _DODGE
        style = _style(s)
        if label in ends:
            low, high = ends[label]
            bars = {"fmt": "none", "elinewidth": 1.1, "capsize": 2.5, "alpha": 0.8}
            ax.errorbar(x, values, [values - low, high - values], ecolor=style["color"], **bars)
        ax.plot(x, values, label=label, linewidth=1.8, markersize=5, **style)
        shown.append(label)
        if label in seen:
            name = f"{label}, train"
            dashed: dict[str, Any] = {**style, "linestyle": (0, (4, 3)), "markerfacecolor": "white"}
            ax.plot(x, seen[label], label=name, linewidth=1.3, markersize=4.5, **dashed)
            shown.append(name)
    ax.set_xticks(np.arange(len(rounds)), [str(name) for name in rounds])
    ax.set_xlim(-0.3, len(rounds) - 0.7)
    _in_percent(ax)
    legend(ax, shown)
    return ax


def metrics_against_k(
    ks: Sequence[int],
    metrics: Mapping[str, Row],
    *,
    intervals: Mapping[str, tuple[Row, Row]] | None = None,
    ylabel: str = "test problems solved",
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw metrics in [0, 1] against the number of samples, on a scale of powers of two.

    Args:
        ks: Numbers of samples, rising, from 1.
        metrics: For each metric (pass@k, best of k, Maj@k, ...) its value at each k; None or NaN
            where there is none.
        intervals: For some metrics the lower and upper ends at each k, drawn as a band.
        ylabel: What the numbers are shares of.
        title: A heading, or nothing.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: If ``ks`` is empty or does not rise from 1 or more, there is no metric, lengths
            differ, intervals belong to no metric, or an interval does not hold its value.
    """
    check_not_empty("ks", ks)
    if ks[0] < 1 or any(after <= k for k, after in pairwise(ks)):
        raise ValueError(f"ks must rise, from 1 or more, got {list(ks)}.")
    table, ends = _rows(metrics, intervals, len(ks), "k")
    ax = styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel("samples k", color=INK)
    ax.set_xscale("log", base=2)
    for s, (label, values) in enumerate(table.items()):
        # So many values need no markers; a few are where something was measured.
        style = _style(s) if len(ks) <= 20 else {"color": _style(s)["color"]}
        if label in ends:
            low, high = ends[label]
            ax.fill_between(ks, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ax.plot(ks, values, label=label, linewidth=1.8, markersize=4.5, **style)
    powers = [2**i for i in range(int(ks[-1]).bit_length()) if ks[0] <= 2**i]
    ticks = powers if len(powers) > 1 else list(ks)
    ax.set_xticks(ticks, [f"{k:,}" for k in ticks])
    ax.set_xticks([], minor=True)
    ax.margins(x=0.02)
    _in_percent(ax)
    legend(ax, list(table))
    return ax


def _style(s: int) -> dict[str, Any]:
    return {"color": COLORS[s % len(COLORS)], "marker": _MARKERS[s % len(_MARKERS)], "zorder": 3}


def _in_percent(ax: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter

    # A few hundredths must not fill the axes: they would look like a change.
    low, high = ax.get_ylim()
    if (missing := _LEAST_SPAN - (high - low)) > 0:
        ax.set_ylim(low - missing / 2, high + missing / 2)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(100 * y, 6):g}%"))


def _rows(
    metrics: Mapping[str, Row],
    intervals: Mapping[str, tuple[Row, Row]] | None,
    num: int,
    what: str,
) -> tuple[dict[str, _Numbers], dict[str, tuple[_Numbers, _Numbers]]]:
    """Return metrics and interval ends as arrays."""
    check_not_empty("metrics", metrics)
    table = _table("metrics", metrics, num, what, metrics)
    ends = {}
    for label, pair in (intervals or {}).items():
        both = {"low": pair[0], "high": pair[1]}
        low, high = _table(f"intervals[{label!r}]", both, num, what, both).values()
        check_choice("intervals", label, metrics)
        value = table[label]
        outside = (low > value + 1e-9) | (high < value - 1e-9)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(
                f"intervals[{label!r}] must hold the metric's values; entry {i} runs from {low[i]} "
                f"to {high[i]}, the value is {value[i]}. Give ends, not half-lengths."
            )
        ends[label] = (np.minimum(low, value), np.maximum(high, value))
    return table, ends


def _table(
    name: str, rows: Mapping[str, Row], num: int, what: str, known: Mapping[str, Any]
) -> dict[str, _Numbers]:
    for label, row in rows.items():
        check_choice(name, label, known)
        check_length(f"{name}[{label!r}]", row, num, what)
    return {label: np.array(row, dtype=np.float64) for label, row in rows.items()}
