"""A picture of a sweep: every case a line, every decoder a dot."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selftrain.bench.decoders import PLAIN, SPECULATIVE
from selftrain.bench.pages import case_label
from selftrain.plots import COLORS, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _GRID = "#24292f", "#e4e7eb"


def sweep_figure(title: str, rows: Sequence[Mapping[str, Any]]) -> "Axes":
    """Draw each decoder's gain over our plain decoding, with quartiles, and what was predicted.

    Args:
        title: A heading.
        rows: What :func:`selftrain.bench.sweep.run_sweep` returned.
    """
    (ax,) = panels(width=8.2, height=1.6 + 0.42 * len(rows))
    names = list(dict.fromkeys(n for row in rows for n in row["methods"] if n != PLAIN))
    shown = []
    for index, name in enumerate(names):
        # Dots of one case lie a little apart, so that none hides another.
        shift = (index - (len(names) - 1) / 2) * 0.6 / max(len(names), 2)
        shown.append(_gains(ax, rows, name, shift, COLORS[index % len(COLORS)]))
        if name == SPECULATIVE and any("prediction" in row for row in rows):
            shown.append(_predictions(ax, rows, shift))
    ax.axvline(1.0, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    ax.set_yticks(range(len(rows)), [case_label(row["case"]) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)  # the first case on top
    ax.set_xlim(left=0)
    ax.set_xlabel("speed over our plain decoding (dashed)")
    ax.set_title(title, loc="left", fontsize=10, pad=10)
    ax.grid(axis="x", color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    style = {"ncols": min(3, len(shown)), "frameon": False, "fontsize": 9}
    ax.figure.legend(handles=shown, loc="outside lower center", **style)
    return ax


def _gains(
    ax: "Axes", rows: Sequence[Mapping[str, Any]], name: str, shift: float, color: str
) -> Any:
    points = [
        (*row["methods"][name]["over"][PLAIN], line + shift)
        for line, row in enumerate(rows)
        if name in row["methods"]
    ]
    low, middle, high, y = (list(column) for column in zip(*points, strict=True))
    below = [m - lo for m, lo in zip(middle, low, strict=True)]
    above = [hi - m for m, hi in zip(middle, high, strict=True)]
    style = {"fmt": "o", "color": color, "label": name, "capsize": 2}
    return ax.errorbar(middle, y, xerr=[below, above], **style)


def _predictions(ax: "Axes", rows: Sequence[Mapping[str, Any]], shift: float) -> Any:
    points = [
        (row["prediction"]["speedup"], line + shift)
        for line, row in enumerate(rows)
        if "prediction" in row
    ]
    x, y = zip(*points, strict=True)
    style = {"linestyle": "none", "marker": "D", "markersize": 6, "markerfacecolor": "none"}
    label = f"{SPECULATIVE}, predicted from bare forwards"
    (line,) = ax.plot(x, y, color=_INK, label=label, zorder=4, **style)
    return line
