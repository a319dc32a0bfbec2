"""Reports of a run: blocks of text, tables and pictures to ``report.md`` and ``report.html``.

The HTML is one file that needs nothing else, not even a network: style and pictures are inside.
"""

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from selftrain._core.checks import check_choice, check_int, check_not_empty
from selftrain._core.io import write_text
from selftrain._core.trace import LEGEND, TokenStatus, check_trace, rows_of, visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Heading:
    """A section's heading."""

    text: str
    """Plain text."""
    level: int = 2
    """From 2 to 4; the report's title is level 1."""

    def __post_init__(self) -> None:
        check_int("level", self.level, low=2, high=4)


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs in Markdown: emphasis, code, links, lists; no HTML and no pictures."""

    markdown: str
    """The source."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of numbers and plain text. Columns of numbers are set to the right."""

    columns: Sequence[str]
    """The head."""
    rows: Sequence[Sequence[str | float | None]]
    """One cell per column. Floats are shown with three significant digits, None as a dash."""
    caption: str = ""
    """A sentence in Markdown beneath the table."""

    def __post_init__(self) -> None:
        check_not_empty("columns", self.columns)
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"rows[{number}] has {len(row)} cells for {len(self.columns)} columns."
                )


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: PNG, JPEG or SVG."""

    path: str | Path
    """The file; relative to the report's folder unless absolute."""
    alt: str
    """What the picture shows, for readers who cannot see it."""
    caption: str = ""
    """A sentence in Markdown beneath the picture."""

    def __post_init__(self) -> None:
        check_choice("the suffix of path", Path(self.path).suffix.lower(), _IMAGE_TYPES)


@dataclass(frozen=True, slots=True)
class Trace:
    """A decoded sample with its tokens coloured by their origin."""

    tokens: Sequence[str]
    """The text of each token, rejected ones included, in the order of decoding."""
    status: Sequence[TokenStatus]
    """For each token ``"prompt"``, ``"accepted"``, ``"rejected"`` or ``"target"``."""
    caption: str = ""
    """A sentence in Markdown beneath the sample."""

    def __post_init__(self) -> None:
        check_trace(self.tokens, self.status)


Block = Heading | Text | Table | Image | Trace
"""What a report is made of."""


def write_report(folder: str | Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write ``report.md`` and ``report.html`` into ``folder``, each atomically.

    The Markdown links to the pictures where they lie; the HTML carries them. Everything given is
    escaped, and the HTML forbids browsers to load anything.

    Args:
        folder: Where the reports go; made if it does not exist.
        title: Heading of the report, in plain text.
        blocks: The report's contents, in order.

    Returns:
        The path of ``report.html``.

    Raises:
        OSError: If a picture cannot be read or a report cannot be written.
        TypeError: If a block is of another kind.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_report(folder, "A run", [Text("It **worked**."), Table(["step"], [[1]])]).name
        'report.html'
    """
    folder = Path(folder)
    html = _page(title, [_html(block, folder) for block in blocks])
    markdown = "\n\n".join([f"# {_md_plain(title)}", *(_md(block, folder) for block in blocks)])
    write_text(folder / "report.md", markdown + "\n")
    write_text(folder / "report.html", html)
    return folder / "report.html"


def _md(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_md_plain(block.text)}"
        case Text():
            return block.markdown.strip()
        case Table():
            return _md_table(block)
        case Image():
            target = Path(os.path.relpath(folder / block.path, folder)).as_posix()
            return _md_captioned(f"![{_md_plain(block.alt)}]({quote(target)})", block.caption)
        case Trace():
            return _md_trace(block)


def _md_table(table: Table) -> str:
    rule = ["---:" if right else "---" for right in _right(table)]
    rows = [[_md_plain(_cell(value)) for value in row] for row in table.rows]
    head = [_md_plain(name) for name in table.columns]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return _md_captioned("\n".join(lines), table.caption)


def _md_trace(trace: Trace) -> str:
    marks = {"prompt": "{}", "accepted": "{}", "rejected": "[-{}-]", "target": "[+{}+]"}
    text = "".join(
        marks[status].format(visible(token) if status == "rejected" else token)
        for token, status in zip(trace.tokens, trace.status, strict=True)
    )
    # A fence has to be longer than any in the text.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    key = f"`[-x-]`: {LEGEND['rejected']}; `[+x+]`: {LEGEND['target']}"
    return _md_captioned(f"{fence}text\n{text}\n{fence}\n\n{key}", trace.caption)


def _md_captioned(body: str, caption: str) -> str:
    return f"{body}\n\n{caption}" if caption else body


def _md_plain(text: str) -> str:
    """Escape what would be markup, in one line."""
    return re.sub(r"([\\`*<|\[\]])", r"\\\1", " ".join(text.split()))


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            return _markdown().render(block.markdown)
        case Table():
            return _figure(_html_table(block), block.caption)
        case Image():
            return _figure(_html_image(block, folder), block.caption)
        case Trace():
            return _figure(_html_trace(block), block.caption)
    raise TypeError(f"blocks: {block!r} is not a Heading, Text, Table, Image or Trace.")


def _html_table(table: Table) -> str:
    classes = [' class="number"' if right else "" for right in _right(table)]

    def row(tag: str, cells: Sequence[str]) -> str:
        pairs = zip(classes, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{c}>{escape(v)}</{tag}>" for c, v in pairs) + "</tr>"

    body = "\n".join(row("td", [_cell(value) for value in r]) for r in table.rows)
    head = row("th", list(table.columns))
    # Focusable, so that a keyboard can scroll it.
    return (
        f'<div class="scroll" tabindex="0"><table><thead>{head}</thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _html_image(image: Image, folder: Path) -> str:
    path = folder / image.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise type(error)(f"Image: could not read {path}: {error.strerror}") from error
    kind = _IMAGE_TYPES[path.suffix.lower()]
    # Our PNGs have two pixels for each of the page's, so that they are sharp on fine screens.
    width = f' width="{int.from_bytes(data[16:20]) // 2}"' if kind == "image/png" else ""
    source = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(image.alt)}"{width} src="data:{kind};base64,{source}">'


def _html_trace(trace: Trace) -> str:
    parts = []
    for token, status in zip(trace.tokens, trace.status, strict=True):
        for row in rows_of(token, status):
            # Marks of blanks are set apart, because a token may hold the same characters.
            shown = "".join(
                f"<i>{visible(c)}</i>" if c in " \n\t\r" else escape(visible(c)) for c in row
            )
            end = "\n" if row.endswith("\n") and status != "rejected" else ""
            parts.append(f'<span class="{status}">{shown}</span>{end}')
    key = " ".join(f'<span class="{s}">{LEGEND[s]}</span>' for s in LEGEND if s in trace.status)
    return f'<p class="trace key">{key}</p>\n<pre class="trace">{"".join(parts)}</pre>'


def _figure(body: str, caption: str) -> str:
    text = f"\n<figcaption>{_markdown().renderInline(caption)}</figcaption>" if caption else ""
    return f"<figure>{body}{text}</figure>"


def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).disable("image")


def _right(table: Table) -> list[bool]:
    """Say which columns hold numbers only, be they numbers or text such as ``1.3 ± 0.1``."""
    number = re.compile(r"[-+−±]?\d")
    columns = ([_cell(row[i]) for row in table.rows] for i in range(len(table.columns)))
    return [
        any(number.match(cell) for cell in cells)
        and all(number.match(cell) or cell in ("–", "nan") for cell in cells)
        for cells in columns
    ]


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return str(value)


def _page(title: str, bodies: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(bodies)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #24292f; --faint: #59636e; --line: #d8dee4; --soft: #f4f6f8;
  --link: #0b62b0;
  --prompt: #eceef1; --prompt-ink: #57606a; --accepted: #cfe5f6; --accepted-ink: #0b3d63;
  --rejected: #fadccf; --rejected-ink: #a33b12; --target: #fbe7a8; --target-ink: #5c4300;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15191e; --ink: #e2e6ea; --faint: #9aa5b1; --line: #343b44; --soft: #1e242b;
    --link: #6cb6ff;
    --prompt: #2b3138; --prompt-ink: #a9b3be; --accepted: #123a5a; --accepted-ink: #c6e2f8;
    --rejected: #53261a; --rejected-ink: #ffb59b; --target: #4f3f0a; --target-ink: #fbe39a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 1.25rem; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, ul, ol { margin: .75rem 0; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { font-size: .9em; background: var(--soft); padding: .1em .35em; border-radius: .3em; }
pre { background: var(--soft); padding: .9rem 1rem; border-radius: .5rem; overflow-x: auto;
  font-size: .85rem; line-height: 1.5; }
pre code { background: none; padding: 0; }
figure { margin: 1.5rem 0; }
figcaption { margin-top: .5rem; font-size: .9rem; color: var(--faint); }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #ffffff;
  border-radius: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; font-size: .95rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
td { white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.trace span { display: inline-block; max-width: 100%; margin: 1px; padding: 0 .1em;
  border-radius: .2em; overflow-wrap: anywhere; }
.trace i { font-style: normal; opacity: .45; }
pre.trace { white-space: pre-wrap; }
.key { font-size: .9rem; margin: 0; }
.key span { padding: 0 .5em; margin-right: .4em; }
.prompt { background: var(--prompt); color: var(--prompt-ink); }
.accepted { background: var(--accepted); color: var(--accepted-ink); }
.rejected { background: var(--rejected); color: var(--rejected-ink);
  text-decoration: line-through; }
.target { background: var(--target); color: var(--target-ink);
  text-decoration: underline; text-underline-offset: .2em; }
@media print { main { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""
