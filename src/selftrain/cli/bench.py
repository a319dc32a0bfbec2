"""``selftrain bench specdec``: how fast speculative decoding is on this machine."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import transformers
import tyro
from rich.console import Console
from rich.table import Table

from selftrain.bench.pages import case_label, model_cells, speed_cells
from selftrain.bench.sweep import SpecdecConfig, run_sweep

BENCHMARKS = {
    "specdec": "Speculative decoding against plain decoding and against transformers.",
}


@dataclass(frozen=True, kw_only=True)
class _Specdec:
    """Measure speculative decoding against plain decoding and against transformers.

    All decoders do the same work, in turn and in one run, beside the bare forwards of the models,
    which give the ceiling. Without --target and --draft a random pair is used that agrees as often
    as --damping says: no download, no training.
    """

    output_dir: Path = Path("runs/bench-specdec")
    """Where rows, table and picture go. The same command continues a run that was stopped."""
    quick: bool = False
    """Start from the settings of a run of some seconds; its numbers mean little."""
    config: Annotated[SpecdecConfig, tyro.conf.arg(name="")] = field(default_factory=SpecdecConfig)


def main(args: list[str]) -> int:
    """Run a benchmark; ``selftrain bench --help`` lists them."""
    if args[:1] == ["specdec"]:
        return _specdec(args[1:])
    lines = [f"  {name}  {text}" for name, text in BENCHMARKS.items()]
    usage = "\n".join(["usage: selftrain bench <benchmark> [options]", "", *lines])
    if args[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    what = f"there is no benchmark {args[0]!r}.\n" if args else ""
    print(f"{what}{usage}", file=sys.stderr)
    return 2


def _specdec(args: list[str]) -> int:
    default = _Specdec(config=SpecdecConfig.quick()) if "--quick" in args else _Specdec()
    command = tyro.cli(_Specdec, args=args, default=default, prog="selftrain bench specdec")
    # Its generation warns of its own use of its own arguments.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    rows = run_sweep(command.config, command.output_dir)
    console.print(command.config.title)
    console.print(_table(rows, speed_cells, "Speed: medians, quartiles in brackets"))
    console.print(_table(rows, model_cells, "The cost model"))
    console.print(f"Rows, table and picture: {command.output_dir}")
    return 0


def _table(rows: list[dict[str, Any]], cells: Any, title: str) -> Table:
    """Return a table with a column per case: a terminal has more lines than columns."""
    shown = Table(title=title, title_justify="left", show_lines=False)
    shown.add_column("")
    for row in rows:
        shown.add_column(case_label(row["case"]), justify="right")
    columns = [cells(row) for row in rows]
    for name in dict.fromkeys(name for column in columns for name in column):
        shown.add_row(name, *(column.get(name, "") for column in columns))
    return shown
