"""Find the Python blocks of a document, and run them.

    python tests/contracts/code_blocks.py RUN_FOLDER

runs the blocks of the README and of every page in docs/ against a finished run of
``selftrain distillspec``, which stands in for the ``runs/distillspec`` that they read. The blocks
of one document share their names, as they would for a reader who types them in turn. A block
after the comment ``<!-- not run: reason -->`` is left out.
"""

import contextlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(<!-- not run: [^>]*-->\n+)?^```python\n(.*?)^```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block of Python."""

    path: Path
    line: int
    code: str
    run: bool


def blocks(path: Path) -> list[Block]:
    """Return the Python blocks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, text.count("\n", 0, m.start(2)) + 1, m.group(2), m.group(1) is None)
        for m in _BLOCK.finditer(text)
    ]


def run_document(path: Path) -> int:
    """Run the blocks of one document in the current folder; return how many ran."""
    names: dict[str, object] = {"__name__": "document"}
    todo = [block for block in blocks(path) if block.run]
    for block in todo:
        # Blank lines in front, so that a traceback gives the line of the document.
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), names)
    return len(todo)


def main(run_folder: Path) -> None:
    """Run all documents in a temporary folder in which ``runs/distillspec`` is ``run_folder``."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("runs").mkdir()
        os.symlink(run_folder.resolve(), "runs/distillspec")
        for path in documents:
            if "_build" not in path.parts and (count := run_document(path)):
                print(f"{path.relative_to(ROOT)}: {count} blocks ran")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
