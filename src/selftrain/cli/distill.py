"""``selftrain distill``: distil a model into another on your own rows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import transformers
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from selftrain._core.checks import check_int
from selftrain._core.io import atomic_folder, read_jsonl, write_text
from selftrain._core.run import check_run, open_run
from selftrain.cli._models import DtypeName, load_model, with_adapters
from selftrain.cli._words import preset_in, presets_of
from selftrain.distill.config import DistillConfig
from selftrain.distill.distiller import Distiller
from selftrain.distill.model_card import model_card
from selftrain.distill.row_files import load_rows
from selftrain.training.pretrained import load_tokenizer

PRESETS = tuple(
    name
    for name in presets_of(DistillConfig)
    if not getattr(DistillConfig, name)().reward_weight  # a reward is a function
)
"""The class methods of the configuration that need no argument, and no reward."""

if TYPE_CHECKING:
    Preset = str
else:
    Preset = tyro.extras.literal_type_from_choices(PRESETS)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a run is made of beside its settings: no folder is continued with other models."""

    student: str
    """Hub name or folder of the student."""
    dataset: str
    """JSONL file, or folder or hub name for `datasets` (name:config): {"prompt": text or messages,
    "completion": text, "weight": number} a row, or "prompt_ids" and "completion_ids"."""
    teacher: str | None = None
    """Hub name or folder of the teacher. With --lora-rank it may be left out: the base teaches."""
    teacher_url: str | None = None
    """Instead: a vLLM server's address, "http://localhost:8000/v1" for example."""
    teacher_model: str | None = None
    """The name under which that server serves the teacher."""
    split: str = "train"
    """Which part of a folder's or hub's data set."""
    prompt_column: str = "prompt"
    """The column of the prompts."""
    completion_column: str = "completion"
    """The column of the completions."""
    dtype: DtypeName = "auto"
    """Type of the weights; auto: as the checkpoint is, but a student trained whole in float32."""
    lora_rank: int | None = None
    """Train LoRA adapters of this rank on all linear layers, not the whole student."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    """Distil a teacher into a student on your own rows."""

    parts: Annotated[_Parts, tyro.conf.arg(name="")]
    preset: Preset | None = None
    """A published method, to start from; every other option overrides it."""
    eval_dataset: str | None = None
    """Rows to evaluate on; as --dataset."""
    eval_split: str = "validation"
    """Which part of a folder's or hub's evaluation data."""
    output_dir: Path = Path("runs/distill")
    """Where everything goes. The same command continues a run that was stopped."""
    trust_remote_code: bool = False
    """Run code that comes with the models. Only for models whose code you have read."""
    config: Annotated[DistillConfig, tyro.conf.arg(name="")] = field(default_factory=DistillConfig)


def main(args: list[str]) -> int:
    """Run the command; ``selftrain distill --help`` lists its options."""
    command = _parse(args)
    _check_parts(command.parts)
    transformers.utils.logging.disable_progress_bar()
    check_run(command.output_dir / "parts", command.parts)
    parts = command.parts
    columns = {"prompt_column": parts.prompt_column, "completion_column": parts.completion_column}
    rows = load_rows(parts.dataset, split=parts.split, **columns)
    held_out = None
    if command.eval_dataset is not None:
        held_out = load_rows(command.eval_dataset, split=command.eval_split, **columns)
    distiller = _distiller(command)
    accelerator = distiller.accelerator
    if accelerator.is_main_process:
        open_run(command.output_dir / "parts", parts, seed=command.config.seed)
    report = distiller.fit(rows, eval_dataset=held_out, output_dir=command.output_dir)
    if accelerator.is_main_process:
        _save(command, distiller, len(rows), report.metrics)
        _show(command, report.history)
    # A process that leaves while its gloo threads run is aborted now and then.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def _parse(args: list[str]) -> _Command:
    preset = preset_in(args, PRESETS)
    config = DistillConfig() if preset is None else getattr(DistillConfig, preset)()
    # What is required stays so beside the defaults.
    default = _Command(parts=_Parts(student=tyro.MISSING, dataset=tyro.MISSING), config=config)
    return tyro.cli(_Command, args=args, default=default, prog="selftrain distill")


def _check_parts(parts: _Parts) -> None:
    if parts.lora_rank is not None:
        check_int("lora_rank", parts.lora_rank, low=1)
    if parts.teacher is not None and parts.teacher_url is not None:
        raise ValueError("teacher and teacher_url exclude each other; give one of them.")
    if (parts.teacher_url is None) != (parts.teacher_model is None):
        raise ValueError("teacher_url and teacher_model go together; give both or none.")
    if parts.teacher is None and parts.teacher_url is None and parts.lora_rank is None:
        raise ValueError(
            "teacher is missing: give --teacher (or --teacher-url and --teacher-model). With "
            "--lora-rank it may be left out, and the student's base teaches."
        )


def _distiller(command: _Command) -> Distiller:
    parts = command.parts
    code = command.trust_remote_code
    loading: Any = {"dtype": parts.dtype, "trust_remote_code": code}
    tokenizer = load_tokenizer(parts.student, trust_remote_code=code)
    student = load_model(parts.student, trained=parts.lora_rank is None, **loading)
    if parts.lora_rank is not None:
        student = with_adapters(student, parts.lora_rank, command.config.seed)
    teacher: Any = None
    teacher_tokenizer: Any = None
    teacher_sampler: Any = None
    if parts.teacher is not None:
        teacher = load_model(parts.teacher, trained=False, **loading).requires_grad_(False)
        teacher_tokenizer = load_tokenizer(parts.teacher, trust_remote_code=code)
    elif parts.teacher_url is not None and parts.teacher_model is not None:
        from selftrain.decoding.endpoint import EndpointSampler
        from selftrain.distill.teachers.endpoint import EndpointTeacher

        teacher = EndpointTeacher(parts.teacher_url, parts.teacher_model)
        teacher_sampler = EndpointSampler(parts.teacher_url, parts.teacher_model)
    return Distiller(
        student,
        teacher,
        tokenizer,
        command.config,
        teacher_sampler=teacher_sampler,
        teacher_tokenizer=teacher_tokenizer,
    )


def _save(
    command: _Command, distiller: Distiller, num_rows: int, metrics: dict[str, float]
) -> None:
    parts = command.parts
    teacher = f"`{parts.teacher or parts.teacher_model}`"
    if parts.teacher is None and parts.teacher_model is None:
        teacher = "its own base, the adapters switched off"
    config: Any = distiller.student.config
    with atomic_folder(command.output_dir / "student") as folder:
        distiller.student.save_pretrained(folder)
        distiller.tokenizer.save_pretrained(folder)
        card = model_card(
            student=parts.student,
            teacher=teacher,
            dataset=parts.dataset,
            num_rows=num_rows,
            config=command.config,
            metrics=metrics,
            has_adapters=parts.lora_rank is not None,
            is_encoder_decoder=config.is_encoder_decoder,
        )
        write_text(folder / "README.md", card)
    _draw(command.output_dir)


def _draw(folder: Path) -> None:
    from selftrain import plots

    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if row["stage"] == "distill"]
    names = {name: name for name in ("loss", "acceptance") if any(name in row for row in rows)}
    axes = plots.panels(len(names))
    for ax, name in zip(axes, names, strict=True):
        curves = {
            label: ([r["step"] for r in rows if key in r], [r[key] for r in rows if key in r])
            for label, key in ((name, name), ("held out", f"eval/{name}"))
            if any(key in row for row in rows)
        }
        plots.loss_curves(curves, ylabel=name, ax=ax)
    plots.save_figure(axes, folder / "metrics.png")


def _show(command: _Command, history: list[dict[str, float]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    first, last = history[0], history[-1]
    table.add_column("metric")
    for row in (first, last):
        table.add_column(f"step {row['step'] + 1:.0f}", justify="right")
    for name in last:
        if name != "step":
            table.add_row(name, *(f"{r[name]:.4g}" if name in r else "" for r in (first, last)))
    console = Console()
    console.print(table)
    console.print(f"Student: {command.output_dir / 'student'}")
    console.print(f"Curves: {command.output_dir / 'metrics.png'}")
