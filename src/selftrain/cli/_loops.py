"""What ``selftrain restem`` and ``selftrain vstar`` share: options, parts, and what they print."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import transformers
import tyro
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from selftrain._core.checks import check_int
from selftrain._core.run import check_run, open_run
from selftrain.cli import _scratch as scratch
from selftrain.cli._loop_tables import ROUND_COLUMNS, round_cells
from selftrain.cli._models import DtypeName, load_model, with_adapters
from selftrain.cli._tasks import STOPS, SYNTHETIC, LoopTasks, TaskOptions, load_tasks
from selftrain.cli._words import word_after
from selftrain.decoding.sampler import Sampler
from selftrain.loops.config import ReSTEMConfig
from selftrain.loops.round import Round, RoundFiles
from selftrain.loops.sample import Sample
from selftrain.training.pretrained import load_tokenizer

SCRATCH = "scratch"
"""The name of a small model that a synthetic task is learnt with from nothing."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of beside its settings: no folder is continued with another model."""

    model: str
    """Hub name or folder of the model, or "scratch": a small one that begins with nothing but the
    worked problems of a synthetic task."""
    problems: Annotated[TaskOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: TaskOptions(task=tyro.MISSING)
    )
    dtype: DtypeName = "auto"
    """Type of the weights; auto: as the checkpoint is, but float32 where all are trained."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank on all linear layers, not the whole model."""


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What may change from one call of a run to the next."""

    sampler: str | None = None
    """Address of a server that samples, "http://localhost:8000/v1" for example: a vLLM that takes
    new adapters while it runs. Needs --lora-rank."""
    sampler_model: str | None = None
    """The name under which that server serves the base model."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models whose code you have read."""
    allow_code_execution: bool = False
    """Where no namespaces can be had, run the programs that the model writes all the same: they can
    then read and write your files."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to start."""

    model: Any
    """The model with its first weights."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""
    tasks: LoopTasks
    """Its problems."""
    sampler: Sampler | None
    """What samples; None: this process."""
    accelerator: Accelerator
    """The process layer."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.accelerator.is_main_process


def defaults_for(args: Sequence[str], config: ReSTEMConfig) -> ReSTEMConfig:
    """Return what the options start from: a preset, fitted to the task and the model named.

    Completions end where a base model would begin with a problem of its own; and a small model that
    is trained from scratch learns faster, has a shorter context and is measured by more samples.
    """
    task, model = word_after(args, "--task"), word_after(args, "--model")
    if model == SCRATCH and task in SYNTHETIC:
        return scratch.settings(config, task)
    stop = STOPS.get(task or "", ())
    return replace(
        config,
        sampling=replace(config.sampling, stop=stop),
        evaluation=replace(
            config.evaluation, sampling=replace(config.evaluation.sampling, stop=stop)
        ),
    )


def prepare(parts: Parts, outside: Outside, config: ReSTEMConfig, folder: Path) -> Run:
    """Load model and problems, once it is sure that the folder is free or holds this very run.

    Raises:
        ValueError: If the options contradict each other, or something cannot be loaded.
        RunConflictError: If the folder holds another run.
    """
    _check(parts, outside, config)
    transformers.utils.logging.disable_progress_bar()
    check_run(folder / "parts", parts)
    accelerator = Accelerator()
    tasks = load_tasks(parts.problems, allow_code_execution=outside.allow_code_execution)
    if parts.model == SCRATCH:
        model, tokenizer = scratch.train_base(
            folder / "base", parts.problems.task, config, tasks, accelerator
        )
    else:
        model, tokenizer = _load(parts, outside, config)
    if accelerator.is_main_process:
        open_run(folder / "parts", parts, seed=config.seed)
    sampler: Any = None
    if outside.sampler is not None and outside.sampler_model is not None:
        from selftrain.decoding.endpoint import EndpointSampler

        sampler = EndpointSampler(outside.sampler, outside.sampler_model, tokenizer=tokenizer)
    return Run(
        model=model, tokenizer=tokenizer, tasks=tasks, sampler=sampler, accelerator=accelerator
    )


def _check(parts: Parts, outside: Outside, config: ReSTEMConfig) -> None:
    if parts.lora_rank is not None:
        check_int("lora_rank", parts.lora_rank, low=1)
    if (outside.sampler is None) != (outside.sampler_model is None):
        raise ValueError("--sampler and --sampler-model go together; give both or none.")
    if outside.sampler is not None and parts.lora_rank is None:
        raise ValueError(
            "--sampler needs --lora-rank: a running server can be given new adapters after a "
            "round, but not a new model. Give --lora-rank, or leave --sampler out."
        )
    if parts.model != SCRATCH:
        return
    if parts.problems.task not in SYNTHETIC:
        raise ValueError(
            f"--model scratch knows no language and cannot learn {parts.problems.task}; name a "
            f"model, or one of the synthetic tasks {', '.join(SYNTHETIC)}."
        )
    if parts.lora_rank is not None:
        raise ValueError("--lora-rank does not go with --model scratch, which is trained whole.")


def _load(
    parts: Parts, outside: Outside, config: ReSTEMConfig
) -> tuple[Any, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(parts.model, trust_remote_code=outside.trust_remote_code)
    model = load_model(
        parts.model,
        dtype=parts.dtype,
        trained=parts.lora_rank is None,
        trust_remote_code=outside.trust_remote_code,
    )
    if parts.lora_rank is not None:
        model = with_adapters(model, parts.lora_rank, config.seed)
    return model, tokenizer


class RoundPrinter:
    """Prints a line for every round that is over, the start before all.

    Args:
        folder: The loop's folder.
        show: Whether this process prints at all.
    """

    def __init__(self, folder: Path, *, show: bool) -> None:
        self._start = RoundFiles(folder / "start").folder
        self._show, self._head = show, False

    def on_samples(self, samples: Sequence[Sample]) -> None:
        """Show the start as soon as the first round samples."""
        self.show_start()

    def on_round(self, round: Round) -> None:
        """Show a round."""
        self.show_start()
        self._print(round)

    def show_start(self) -> None:
        """Show the start once, if it is over."""
        start = None if self._head or not self._show else Round.load(self._start)
        if start is not None:
            self._head = True
            print(_line(list(ROUND_COLUMNS)), flush=True)
            self._print(start)

    def _print(self, round: Round) -> None:
        if self._show:
            print(_line(round_cells(round)), flush=True)


def announce(folder: Path, loop_folder: Path, summary: Path, *, show: bool) -> None:
    """Say whether a run is begun, continued, or finished already."""
    if not show:
        return
    done = sum((path / "metrics.json").exists() for path in loop_folder.glob("rounds/*"))
    if summary.exists():
        print(f"{folder} holds this very run, and it is finished; nothing is trained again.")
    elif (loop_folder / "config.json").exists():
        print(f"Continuing the run in {folder}: {done} of its rounds are over.")


def finish(accelerator: Accelerator) -> None:
    """Leave together: a process that goes while its gloo threads run is aborted now and then."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _line(cells: Sequence[str]) -> str:
    widths = ROUND_COLUMNS.values()
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
