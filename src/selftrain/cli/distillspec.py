"""``selftrain distillspec``: from text to a faster decoder and a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import transformers
import tyro
from rich.console import Console

from selftrain.distill.pipeline import DistillSpecConfig, run


@dataclass(frozen=True, kw_only=True)
class _Command:
    """Distil a draft from its target, decode held-out text with both, and report the speed-up."""

    output_dir: Path = Path("runs/distillspec")
    """Where models, plots and the report go. The same command continues a run that was stopped."""
    quick: bool = False
    """Start from the settings of a run of under a minute; its models learn little."""
    config: Annotated[DistillSpecConfig, tyro.conf.arg(name="")] = field(
        default_factory=DistillSpecConfig
    )


def main(args: list[str]) -> int:
    """Run the command; ``selftrain distillspec --help`` lists its options."""
    default = _Command(config=DistillSpecConfig.quick()) if "--quick" in args else _Command()
    command = tyro.cli(_Command, args=args, default=default, prog="selftrain distillspec")
    transformers.utils.logging.disable_progress_bar()  # ours say what is being done
    console = Console()
    report = command.output_dir / "report.html"
    if report.exists():
        run(command.config, command.output_dir)  # refuses another configuration
        console.print(f"This run is finished; its report is {report}")
        return 0
    report = run(command.config, command.output_dir)
    console.print(f"Report: {report}")
    return 0
