"""What all figures share: colours, empty axes, headings, legends, and how a figure is written."""

import io
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain._core.checks import check_int, check_range
from selftrain._core.io import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers, darkened to carry white.
COLORS = ("#0072b2", "#d98a00", "#009e73", "#c8509b", "#56b4e9", "#7a7a7a")
"""The colours of series, in order."""

INK, FAINT, GRID = "#24292f", "#6e7781", "#e4e7eb"
_DPI = 200


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


def styled(ax: "Axes | None", *, ylabel: str, title: str) -> "Axes":
    """Return ``ax``, or new axes, with the frame, grid and headings that all plots have."""
    ax = panels()[0] if ax is None else ax
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_ylabel(ylabel, color=INK)
    heading(ax, title)
    return ax


def heading(ax: "Axes", title: str) -> None:
    """Write ``title``, unless it is empty, at the left above the axes."""
    if title:
        ax.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=10)


def reference_line(ax: "Axes", label: str, height: float) -> None:
    """Draw a dashed horizontal line."""
    ax.axhline(height, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=label, zorder=3)


def legend(ax: "Axes", labels: Sequence[str]) -> None:
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
        labelcolor=INK,
        handlelength=1.4,
    )


def check_length(name: str, values: Sized, num: int, what: str) -> None:
    """Raise ``ValueError`` unless ``values`` has ``num`` elements, one per ``what``."""
    if len(values) != num:
        raise ValueError(f"{name} must have one value per {what} ({num}), got {len(values)}.")


def _figure(ax: "Axes") -> "Figure":
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("ax belongs to no figure any more; it was removed.")
    return figure
