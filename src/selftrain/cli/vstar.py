"""``selftrain vstar``: train a generator and a verifier on one model's own answers (V-STaR)."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from selftrain._core.io import write_json
from selftrain.cli._loop_report import GENERATOR, VERIFIER, Outcome, show_outcome, write_outcome
from selftrain.cli._loops import (
    SCRATCH,
    Outside,
    Parts,
    RoundPrinter,
    announce,
    defaults_for,
    finish,
    prepare,
)
from selftrain.cli._scratch import preference_settings
from selftrain.cli._tasks import SYNTHETIC
from selftrain.cli._words import preset_in, presets_of, word_after
from selftrain.loops.vstar import VSTaR, VSTaRConfig

PRESETS = presets_of(VSTaRConfig)
"""The published settings, by the names of the configuration's class methods."""

if TYPE_CHECKING:
    Preset = str
else:
    Preset = tyro.extras.literal_type_from_choices(PRESETS)


@dataclass(frozen=True, kw_only=True)
class _Command:
    """Train a generator on its own right answers, and a verifier that picks among its answers."""

    parts: Annotated[Parts, tyro.conf.arg(name="")]
    preset: Preset | None = None
    """A published method, to start from; every other option overrides it."""
    output_dir: Path = Path("runs/vstar")
    """Where everything goes. The same command continues a run that was stopped."""
    outside: Annotated[Outside, tyro.conf.arg(name="")] = field(default_factory=Outside)
    config: Annotated[VSTaRConfig, tyro.conf.arg(name="")] = field(default_factory=VSTaRConfig)


def main(args: list[str]) -> int:
    """Run the command; ``selftrain vstar --help`` lists its options."""
    command = _parse(args)
    folder, config = command.output_dir, command.config
    if config.generator.rationalize:
        raise ValueError("--generator.rationalize is STaR's; use selftrain restem --preset star.")
    run = prepare(command.parts, command.outside, config.generator, folder)
    tasks, summary = run.tasks, folder / "summary.json"
    announce(folder, folder / "generator", summary, show=run.is_main)
    printer = RoundPrinter(folder / "generator", show=run.is_main)
    needs_solved = config.generator.with_solutions or config.generator.solutions_first
    vstar = VSTaR(
        run.model,
        run.tokenizer,
        tasks.train,
        config,
        validation=tasks.validation,
        output_dir=folder,
        test=tasks.test,
        solved=tasks.solved() if needs_solved else None,
        sampler=run.sampler,
        accelerator=run.accelerator,
        on_samples=printer.on_samples,
        on_round=printer.on_round,
    )
    result = vstar.run()
    printer.show_start()
    if run.is_main:
        rounds = result.generator.rounds
        generator = vstar.loop.weights_before(
            len(rounds) if config.final_generator == "last" else 0
        )
        models = {} if generator is None else {GENERATOR: generator}
        outcome = Outcome(
            method="V-STaR",
            parts=command.parts,
            config=config,
            run=run,
            result=result.generator,
            reports=result.reports,
            models={**models, VERIFIER: folder / "verifier" / "model"},
        )
        report = write_outcome(folder, outcome)
        write_json(summary, {"stopped": result.generator.stopped})
        show_outcome(outcome, report)
    finish(run.accelerator)
    return 0


def _parse(args: list[str]) -> _Command:
    preset = preset_in(args, PRESETS)
    config = VSTaRConfig() if preset is None else getattr(VSTaRConfig, preset)()
    config = replace(config, generator=defaults_for(args, config.generator))
    task = word_after(args, "--task")
    if word_after(args, "--model") == SCRATCH and task in SYNTHETIC:
        config = preference_settings(config, task)
    # What is required stays so beside the defaults.
    default = _Command(parts=Parts(model=tyro.MISSING), config=config)
    return tyro.cli(_Command, args=args, default=default, prog="selftrain vstar")
