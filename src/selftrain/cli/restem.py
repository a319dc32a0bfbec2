"""``selftrain restem``: let a model improve on its own right answers (ReST-EM, STaR, RFT)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from selftrain._core.io import write_json
from selftrain.cli._loop_report import GENERATOR, Outcome, show_outcome, write_outcome
from selftrain.cli._loops import (
    Outside,
    Parts,
    RoundPrinter,
    announce,
    defaults_for,
    finish,
    prepare,
)
from selftrain.cli._tasks import answer_hint
from selftrain.cli._words import preset_in, presets_of
from selftrain.loops.config import ReSTEMConfig
from selftrain.loops.rest_em import ReSTEM

PRESETS = presets_of(ReSTEMConfig)
"""The published settings, by the names of the configuration's class methods."""

if TYPE_CHECKING:
    Preset = str
else:
    Preset = tyro.extras.literal_type_from_choices(PRESETS)


@dataclass(frozen=True, kw_only=True)
class _Command:
    """Let a model improve on problems whose answers can be checked, by its own right answers."""

    parts: Annotated[Parts, tyro.conf.arg(name="")]
    preset: Preset | None = None
    """A published method, to start from; every other option overrides it."""
    output_dir: Path = Path("runs/restem")
    """Where everything goes. The same command continues a run that was stopped."""
    outside: Annotated[Outside, tyro.conf.arg(name="")] = field(default_factory=Outside)
    config: Annotated[ReSTEMConfig, tyro.conf.arg(name="")] = field(default_factory=ReSTEMConfig)


def main(args: list[str]) -> int:
    """Run the command; ``selftrain restem --help`` lists its options."""
    command = _parse(args)
    folder, config = command.output_dir, command.config
    run = prepare(command.parts, command.outside, config, folder)
    tasks, summary = run.tasks, folder / "summary.json"
    announce(folder, folder, summary, show=run.is_main)
    printer = RoundPrinter(folder, show=run.is_main)
    loop = ReSTEM(
        run.model,
        run.tokenizer,
        tasks.train,
        config,
        validation=tasks.validation,
        output_dir=folder,
        test=tasks.test,
        solved=tasks.solved() if config.with_solutions or config.solutions_first else None,
        sampler=run.sampler,
        hint=answer_hint(tasks.train) if config.rationalize else None,
        accelerator=run.accelerator,
        on_samples=printer.on_samples,
        on_round=printer.on_round,
    )
    result = loop.run()
    printer.show_start()
    if run.is_main:
        best = loop.weights_before(result.best.number + 1)
        outcome = Outcome(
            method="ReST-EM",
            parts=command.parts,
            config=config,
            run=run,
            result=result,
            reports={},
            models={} if best is None else {GENERATOR: best},
        )
        report = write_outcome(folder, outcome)
        write_json(summary, {"best": result.best.number, "stopped": result.stopped})
        show_outcome(outcome, report)
    finish(run.accelerator)
    return 0


def _parse(args: list[str]) -> _Command:
    preset = preset_in(args, PRESETS)
    config = ReSTEMConfig() if preset is None else getattr(ReSTEMConfig, preset)()
    # What is required stays so beside the defaults.
    default = _Command(parts=Parts(model=tyro.MISSING), config=defaults_for(args, config))
    return tyro.cli(_Command, args=args, default=default, prog="selftrain restem")
