"""``selftrain bench specdec``: how fast speculative decoding is on this machine."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import transformers
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from selftrain.bench.pages import case_label, summary_cells
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
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    cells = [summary_cells(row) for row in rows]
    for column in ("case", *cells[0]):
        shown.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        shown.add_row(case_label(row["case"]), *line.values())
    console.print(f"{command.config.title}; medians over {command.config.repeats} rounds")
    console.print(shown)
    console.print(f"Quartiles, times and the cost model: {command.output_dir / 'table.md'}")
    return 0
