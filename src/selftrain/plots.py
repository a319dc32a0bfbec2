"""Matplotlib figures of plain numbers, in one style; each function returns its axes.

Figures are made without pyplot: no backend is chosen, no window opened, no global setting changed.
Pass ``ax`` to draw into axes of your own, and :func:`save_figure` to write a PNG.
"""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selftrain._core.checks import check_choice, check_int, check_not_empty, check_range
from selftrain._core.io import write_bytes
from selftrain._core.trace import LEGEND, TokenStatus, check_trace, rows_of, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

# Okabe and Ito's colours, which stay apart for colour-blind readers, darkened to carry white.
COLORS = ("#0072b2", "#d98a00", "#009e73", "#c8509b", "#56b4e9", "#7a7a7a")
"""The colours of series, in order."""

_INK, _FAINT, _GRID = "#24292f", "#6e7781", "#e4e7eb"
_TRACE_COLORS: dict[TokenStatus, tuple[str, str]] = {  # fill and ink
    "prompt": ("#eceef1", "#57606a"),
    "accepted": ("#cfe5f6", "#0b3d63"),
    "rejected": ("#fadccf", "#a33b12"),
    "target": ("#fbe7a8", "#5c4300"),
}
_TRACE_WIDTH = 7.6  # inches
_LINE = 2.3  # distance of lines, in widths of a character
_DPI = 200
_PREDICTED = "predicted by the cost model"


def panels(num: int = 1, *, width: float = 6.4, height: float = 3.6) -> "list[Axes]":
    """Return empty axes side by side in a new figure.

    Args:
        num: How many.
        width: Width of each, in inches.
        height: Height, in inches.

    Raises:
        ValueError: If ``num``, ``width`` or ``height`` is not positive.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    check_int("num", num, low=1)
    check_range("width", width, low=0.0, low_open=True)
    check_range("height", height, low=0.0, low_open=True)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(num * width, height), dpi=_DPI, layout=layout)
    return list(figure.subplots(1, num, squeeze=False)[0])


def save_figure(axes: "Axes | Sequence[Axes]", path: str | Path) -> None:
    """Write the figure that holds ``axes`` to ``path`` as a PNG, atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    ax = axes[0] if isinstance(axes, Sequence) else axes
    buffer = io.BytesIO()
    _figure(ax).savefig(buffer, format="png", facecolor="white")
    write_bytes(path, buffer.getvalue())


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
        _check_length(f"curves[{label!r}]", values, len(steps), "step")
    ax = _styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel(xlabel, color=_INK)
    for (label, (steps, values)), color in zip(curves.items(), cycle(COLORS), strict=False):
        marker = "o" if len(steps) == 1 else None
        if smoothing:
            ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        smooth = _smoothed(values, smoothing)
        ax.plot(steps, smooth, color=color, linewidth=1.8, label=label, marker=marker)
    ax.margins(x=0.02)
    if len(curves) > 1:
        _legend(ax, list(curves))
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
        _check_length(f"curves[{label!r}]", gains, len(costs), "cost")
    for label in baselines:
        check_choice("baselines", label, curves)
    ax = _styled(ax, ylabel=ylabel, title=title)
    ax.set_xlabel(xlabel, color=_INK)
    ax.grid(axis="x", color=_GRID, linewidth=0.8)
    colors, markers, greys = cycle(COLORS[:5]), cycle("osD^v"), cycle("xP+*")
    for label, (costs, gains) in curves.items():
        style: dict[str, Any] = {"color": next(colors), "marker": next(markers), "zorder": 3}
        if label in baselines:
            style = {"color": _FAINT, "marker": next(greys), "linestyle": (0, (4, 3))}
        ax.plot(costs, gains, label=label, linewidth=1.5, markersize=5, **style)
    shown = list(curves)
    if start is not None:
        label, cost, gain = start
        style = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "linestyle": "none"}
        ax.plot([cost], [gain], color=_INK, label=label, zorder=4, **style)
        shown.append(label)
    _legend(ax, shown)
    return ax


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
            _check_length(name, table, len(series), "series")
            for label, row in zip(series, table, strict=True):
                _check_length(f"{name} of {label!r}", row, len(groups), "group")
    ax = _styled(ax, ylabel=ylabel, title=title)
    width = 0.78 / len(series)
    for s, (label, color) in enumerate(zip(series, cycle(COLORS), strict=False)):
        x = np.arange(len(groups)) + (s - (len(series) - 1) / 2) * width
        _bars(ax, x, values[s], errors[s] if errors else None, width * 0.92, color, label)
    _finish_bars(ax, groups)
    shown = list(series) if len(series) > 1 else []
    if reference is not None:
        _reference(ax, *reference)
        shown.append(reference[0])
    if shown:
        _legend(ax, shown)
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
            _check_length(name, row, len(labels), "label")
    ax = _styled(ax, ylabel=ylabel, title=title)
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
        _reference(ax, *reference)
        shown.append(reference[0])
    _legend(ax, shown)
    return ax


def token_trace(
    tokens: Sequence[str],
    status: Sequence[TokenStatus],
    *,
    columns: int = 88,
    title: str = "",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a decoded sample as boxes of tokens that flow over lines, coloured by their origin.

    White space is marked (``·`` blank, ``↵`` line end, ``⇥`` tab). A line end in the text breaks
    the line; rejected tokens are struck through, tokens of the target underlined. Characters that
    the font does not have are drawn as ``□``.

    Args:
        tokens: The text of each token, rejected ones included, in the order of decoding.
        status: For each token ``"prompt"``, ``"accepted"``, ``"rejected"`` or ``"target"``.
        columns: Characters in a line.
        title: A heading, or nothing.
        ax: Axes to draw into; by default new ones, as high as the text needs.

    Raises:
        ValueError: If there is no token, the lengths differ, or a status is unknown.
    """
    check_trace(tokens, status)
    check_int("columns", columns, low=20)
    used = [key for key in LEGEND if key in status]
    pieces = _flow([LEGEND[key].replace(" ", "\xa0") for key in used], used, columns, gap=1.5)
    below = pieces[-1].line + 1.6
    body = _flow(tokens, status, columns)
    pieces += [replace(piece, line=piece.line + below) for piece in body]
    height = (pieces[-1].line + 1) * _LINE
    if ax is None:
        # The width of a character in inches, after the figure's padding; then the same height.
        unit = (_TRACE_WIDTH - 0.24) / (columns + 0.9)
        inches = (height + 0.2) * unit + (0.63 if title else 0.24)
        (ax,) = panels(width=_TRACE_WIDTH, height=inches)
    ax.set_axis_off()
    ax.set_xlim(-0.2, columns + 0.7)
    ax.set_ylim(-height, 0.2)
    ax.set_aspect("equal", anchor="NW")
    _heading(ax, title)
    for piece in pieces:
        _draw_piece(ax, piece)
    return ax


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one line shows of one token."""

    text: str
    status: TokenStatus
    line: float
    x: float


def _flow(
    tokens: Sequence[str], status: Sequence[TokenStatus], columns: int, *, gap: float = 0.5
) -> list[_Piece]:
    """Lay tokens out over lines of ``columns`` characters; break after each line end."""
    pieces, line, x = [], 0, 0.0
    for token, state in zip(tokens, status, strict=True):
        for row in rows_of(token, state):
            for start in range(0, len(row), columns):
                text = row[start : start + columns]
                if x > 0 and x + len(text) > columns:
                    line, x = line + 1, 0.0
                pieces.append(_Piece(text, state, line, x))
                x += len(text) + gap
            if state != "rejected" and row.endswith("\n"):
                line, x = line + 1, 0.0
    return pieces


def _draw_piece(ax: "Axes", piece: _Piece) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, ink = _TRACE_COLORS[piece.status]
    x, y, width = piece.x, -piece.line * _LINE, len(piece.text) + 0.4
    style = "round,pad=0,rounding_size=0.3"
    box = FancyBboxPatch((x, y - 1.95), width, 1.95, boxstyle=style, facecolor=fill, linewidth=0)
    box.set_gid(f"token-{piece.status}")
    ax.add_patch(box)
    blank = [c in " \n\t\r" for c in piece.text]
    shown = visible(piece.text)
    for marks, alpha in ((False, 1.0), (True, 0.45)):
        text = "".join(c if b == marks else " " for c, b in zip(shown, blank, strict=True))
        if not text.isspace():
            ax.add_patch(_glyphs(text, x + 0.2, y - 1.4, color=ink, alpha=alpha))
    if piece.status == "rejected":
        ax.plot([x + 0.1, x + width - 0.1], [y - 0.95] * 2, color=ink, linewidth=1.1)
    if piece.status == "target":
        ax.plot([x + 0.3, x + width - 0.3], [y - 1.8] * 2, color=ink, linewidth=1.1)


def _glyphs(text: str, x: float, y: float, *, color: str, alpha: float) -> "PathPatch":
    """Return monospaced text as outlines, one unit of the axes a character."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties, get_font
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath

    # The font that comes with matplotlib: its advance is known, whatever the user's settings.
    file = Path(get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")
    known = get_font(str(file)).get_charmap()
    text = "".join(c if ord(c) in known else "□" for c in text)
    # A dollar sign would start a formula.
    path = TextPath(
        (x, y), text.replace("$", r"\$"), size=1 / 0.602, prop=FontProperties(fname=file)
    )
    return PathPatch(path, facecolor=color, linewidth=0, alpha=alpha)


def _figure(ax: "Axes") -> "Figure":
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("ax belongs to no figure any more; it was removed.")
    return figure


def _styled(ax: "Axes | None", *, ylabel: str, title: str) -> "Axes":
    ax = panels()[0] if ax is None else ax
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_FAINT)
    ax.tick_params(colors=_FAINT, labelcolor=_INK, labelsize=9)
    ax.grid(axis="y", color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel(ylabel, color=_INK)
    _heading(ax, title)
    return ax


def _heading(ax: "Axes", title: str) -> None:
    if title:
        ax.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold", pad=10)


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
        ax.errorbar(x, heights, errors, fmt="none", ecolor=_INK, elinewidth=1.1, capsize=3)
    for i, height in enumerate(heights):
        top = height + (errors[i] if errors is not None else 0.0)
        _value(ax, _short(height), (float(x[i]), top), offset=(0, 3))


def _value(ax: "Axes", text: str, at: tuple[float, float], *, offset: tuple[int, int]) -> None:
    """Write a number above a point, or beside it where the offset is sideways (in points)."""
    ha, va = ("left", "center") if offset[0] else ("center", "bottom")
    style = {"textcoords": "offset points", "fontsize": 8.5, "color": _INK, "zorder": 5}
    ax.annotate(text, at, xytext=offset, ha=ha, va=va, **style)


def _finish_bars(ax: "Axes", labels: Sequence[str]) -> None:
    ax.set_xticks(np.arange(len(labels)), labels)
    ax.tick_params(axis="x", length=0, pad=6)
    ax.set_xlim(-0.55, len(labels) - 0.45)
    ax.margins(y=0.12)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))


def _reference(ax: "Axes", label: str, height: float) -> None:
    ax.axhline(height, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), label=label, zorder=3)


def _legend(ax: "Axes", labels: Sequence[str]) -> None:
    """Put a legend beneath the axes, where it can hide no data, with its entries in order."""
    from matplotlib.transforms import ScaledTranslation

    figure = _figure(ax)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    room = ax.get_position().width * figure.get_figwidth() * 16  # characters, at 9 points
    one_row = sum(len(label) + 5 for label in labels) <= room
    columns = len(labels) if one_row else max(1, int(room / (max(map(len, labels)) + 5)))
    below = ScaledTranslation(0, -0.48 if ax.get_xlabel() else -0.28, figure.dpi_scale_trans)
    ax.legend(
        [handles[label] for label in labels],
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=ax.transAxes + below,
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.4,
    )


def _short(value: float) -> str:
    """Write a number with about three digits, and never in powers of ten below a million."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


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


def _check_length(name: str, values: Sequence[object], num: int, what: str) -> None:
    if len(values) != num:
        raise ValueError(f"{name} must have one value per {what} ({num}), got {len(values)}.")
