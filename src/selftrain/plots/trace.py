"""A decoded sample, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain._core.checks import check_int
from selftrain._core.trace import LEGEND, TokenStatus, check_trace, rows_of, visible
from selftrain.plots._style import heading, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch

_COLORS: dict[TokenStatus, tuple[str, str]] = {  # fill and ink
    "prompt": ("#eceef1", "#57606a"),
    "accepted": ("#cfe5f6", "#0b3d63"),
    "rejected": ("#fadccf", "#a33b12"),
    "target": ("#fbe7a8", "#5c4300"),
}
_WIDTH = 7.6  # inches
_LINE = 2.3  # distance of lines, in widths of a character


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
        unit = (_WIDTH - 0.24) / (columns + 0.9)
        inches = (height + 0.2) * unit + (0.63 if title else 0.24)
        (ax,) = panels(width=_WIDTH, height=inches)
    ax.set_axis_off()
    ax.set_xlim(-0.2, columns + 0.7)
    ax.set_ylim(-height, 0.2)
    ax.set_aspect("equal", anchor="NW")
    heading(ax, title)
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

    fill, ink = _COLORS[piece.status]
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
