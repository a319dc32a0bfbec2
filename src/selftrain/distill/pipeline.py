"""DistillSpec from text to report: the resumable body of ``selftrain distillspec``.

Target, draft, three ways to train the draft further, decoding, report (arXiv 2310.08461). Every
stage leaves a folder or file that is whole or absent, so the same call continues a killed run.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_choice, check_int
from selftrain._core.io import atomic_folder, read_jsonl, recover_folder, write_jsonl
from selftrain._core.rng import derive, seeded_torch
from selftrain._core.run import check_run, open_run
from selftrain.decoding.params import SamplingParams
from selftrain.distill.config import DistillConfig
from selftrain.distill.data import PromptData, keep_data, prepare_data
from selftrain.distill.distiller import Distiller
from selftrain.distill.measure import Measurements, measure_drafts
from selftrain.distill.models import ModelShape, new_llama
from selftrain.distill.summary import write_summary
from selftrain.training.finetune import FinetuneConfig, finetune
from selftrain.training.optim import OptimConfig
from selftrain.training.pretrained import load_pretrained, load_tokenizer

DRAFTS = ("undistilled", "supervised", "on_policy")
"""The ways to go on from one draft: next-token loss, forward KL on the corpus, on-policy."""


# Saved after every second step: a killed run loses one step at most, at half the cost.
def _training(num_steps: int, learning_rate: float) -> FinetuneConfig:
    optim = OptimConfig(
        learning_rate=learning_rate,
        warmup_steps=min(50, num_steps // 10),
        schedule="cosine",
        weight_decay=0.1,
        betas=(0.9, 0.95),
    )
    return FinetuneConfig(num_steps=num_steps, batch_size=8, optim=optim, save_every=2)


def _distillation(num_steps: int) -> DistillConfig:
    return DistillConfig(
        divergence="forward_kl",  # as the supervised draft: they differ in their text alone
        sampling=SamplingParams(max_new_tokens=64),
        num_steps=num_steps,
        batch_size=32,
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=10, schedule="cosine"),
        save_every=2,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillSpecConfig:
    """Settings of a DistillSpec run; the default takes minutes on two CPU cores."""

    dataset: str = "python-core"
    """An embedded text ("python-core", "python", "python-docs"), a file, a folder or a hub name."""
    text_column: str = "text"
    """The field of JSONL and hub rows that holds the text."""
    target: str | None = None
    """Hub name or folder of the target; None trains one from scratch."""
    draft: str | None = None
    """Hub name or folder of the draft; None trains one from scratch."""
    prompts: Literal["raw", "chat"] = "raw"
    """Prompts as they stand, or as a user's message through the tokenizer's chat template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The data type of models that are loaded."""
    vocab_size: int = 1024
    """Tokens of the tokenizer that is trained with a target from scratch."""
    target_shape: ModelShape = field(default_factory=ModelShape)
    """The target, if it is trained."""
    draft_shape: ModelShape = field(default_factory=lambda: ModelShape(num_layers=1))
    """The draft, if it is trained."""
    block_tokens: int = 128
    """Length of the sequences that target and draft are trained on."""
    target_training: FinetuneConfig = field(default_factory=lambda: _training(1000, 5e-3))
    """How the target is trained on next tokens."""
    draft_training: FinetuneConfig = field(default_factory=lambda: _training(600, 5e-3))
    """How the draft that all three start from is trained on next tokens."""
    distillation: DistillConfig = field(default_factory=lambda: _distillation(200))
    """The on-policy draft; the other two take as many steps over rows of the same size."""
    prompt_tokens: int = 32
    """Length of the prompts."""
    num_draft_tokens: int = 4
    """Tokens proposed per block."""
    num_prompts: int = 16
    """Held-out prompts that every decoder continues, timed, one at a time."""
    num_untimed_prompts: int = 64
    """Held-out prompts, decoded in batches, for acceptance and block efficiency."""
    max_new_tokens: int = 96
    """Tokens generated per prompt."""
    seed: int = 0
    """Everything random in the run follows from it."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "num_draft_tokens", "num_prompts", "max_new_tokens"):
            check_int(name, getattr(self, name), low=1)
        check_int("num_untimed_prompts", self.num_untimed_prompts, low=self.num_prompts)
        check_int("block_tokens", self.block_tokens, low=2)
        check_int("seed", self.seed, low=0, high=2**63 - 1)
        check_choice("prompts", self.prompts, ("raw", "chat"))
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.draft is not None and self.target is None:
            raise ValueError(
                f"draft={self.draft!r} needs the target it was made for: a target trained here has "
                "a tokenizer of its own. Set target, or leave draft out."
            )

    @classmethod
    def quick(cls) -> "DistillSpecConfig":
        """Return a run of under a minute, to see every part work; its models learn little."""
        return cls(
            dataset="python-docs",
            vocab_size=512,
            target_shape=ModelShape(num_layers=6, width=64),
            draft_shape=ModelShape(num_layers=1, width=64),
            target_training=_training(120, 5e-3),
            draft_training=_training(60, 5e-3),
            distillation=_distillation(40),
            num_prompts=4,
            num_untimed_prompts=16,
            max_new_tokens=48,
        )

    def for_draft(self, name: str) -> DistillConfig:
        """Return how the draft ``name`` of :data:`DRAFTS` goes on from the common start."""
        changes: dict[str, Any] = {"seed": derive(self.seed, name, self.distillation.seed)}
        if name != "on_policy":
            divergence = "nll" if name == "undistilled" else "forward_kl"
            changes |= {"divergence": divergence, "beta": None, "jsd_scale": "paper"}
            changes |= {"on_policy_fraction": 0.0, "fixed_source": "dataset"}
        if name == "undistilled":
            changes["loss_temperature"] = 1.0
        return replace(self.distillation, **changes)


def run(config: DistillSpecConfig, folder: str | Path, *, show_progress: bool = True) -> Path:
    """Run every stage that ``folder`` does not hold yet; return the path of the report.

    Args:
        config: The run.
        folder: Where everything goes; a run of another configuration there is refused.
        show_progress: Whether to show bars.

    Raises:
        RunConflictError: If ``folder`` holds a run with another configuration.
        ValueError: If the corpus or a model does not suit.
        OSError: If something cannot be read or written.
    """
    folder = Path(folder)
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(
            f"distillspec runs in one process, not {accelerator.num_processes}: its decoding is "
            "timed. Distiller and finetune run on several."
        )
    check_run(folder, config)
    report = folder / "report.html"
    if report.exists():
        shutil.rmtree(folder / "training", ignore_errors=True)  # killed while tidying up
        return report
    stages = _Stages(config, folder, accelerator, show_progress)
    # What can fail for a mistyped name fails here, before the folder is bound to a configuration.
    target, tokenizer = stages.named_models()
    data = prepare_data(config, folder, tokenizer)
    open_run(folder, config, seed=config.seed)
    keep_data(data, folder)
    target = target or stages.train_target(data)
    drafts = stages.drafts(target, data)
    measurements = measure_drafts(
        target,
        drafts,
        data.tokenizer,
        data.test_prompts,
        folder=folder,
        num_timed=config.num_prompts,
        num_draft_tokens=config.num_draft_tokens,
        max_new_tokens=config.max_new_tokens,
        seed=derive(config.seed, "measure"),
        show_progress=show_progress,
    )
    return stages.finish(measurements, target, drafts, data)


class _Stages:
    """The stages that train; each is skipped where its result lies in the folder."""

    def __init__(
        self, config: DistillSpecConfig, folder: Path, accelerator: Accelerator, show: bool
    ) -> None:
        self.config, self.folder, self.accelerator, self.show = config, folder, accelerator, show

    def named_models(self) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
        """Return the target that the user named and its tokenizer, and try the draft named."""
        if self.config.target is None:
            return None, None
        if self.config.draft is not None:
            self._load(self.config.draft)
        return self._load(self.config.target), load_tokenizer(self.config.target)

    def train_target(self, data: PromptData) -> PreTrainedModel:
        return self._next_token(
            "target", self.config.target_shape, self.config.target_training, data
        )

    def drafts(self, target: PreTrainedModel, data: PromptData) -> dict[str, PreTrainedModel]:
        """Return the three drafts, each trained on from the same start."""
        if self.config.draft is None:
            self._next_token(
                "draft_start", self.config.draft_shape, self.config.draft_training, data
            )
            start = str(self.folder / "draft_start")
        else:
            start = self.config.draft
        return {name: self._distil(name, start, target, data) for name in DRAFTS}

    def _distil(
        self, name: str, start: str, target: PreTrainedModel, data: PromptData
    ) -> PreTrainedModel:
        # The on-policy draft is what the run is for: it gets the plain name.
        folder = self.folder / ("draft" if name == "on_policy" else f"draft_{name}")
        recover_folder(folder)
        if not folder.exists():
            distiller = Distiller(
                self._load(start),
                target.requires_grad_(False),
                data.tokenizer,
                self.config.for_draft(name),
                accelerator=self.accelerator,
            )
            distiller.fit(
                data.train_rows,
                output_dir=self._work(name),
                show_progress=self.show,
                title=f"draft, {name.replace('_', '-')}",
            )
            self._keep(folder, distiller.student, data.tokenizer)
        return self._load(str(folder))

    def _next_token(
        self, name: str, shape: ModelShape, training: FinetuneConfig, data: PromptData
    ) -> PreTrainedModel:
        folder = self.folder / name
        recover_folder(folder)
        if not folder.exists():
            with seeded_torch(self.config.seed, "weights", name):
                model = new_llama(shape, data.tokenizer)
            finetune(
                model.to(self.accelerator.device),  # pyrefly: ignore
                data.train_blocks,
                replace(training, seed=derive(self.config.seed, name, training.seed)),
                output_dir=self._work(name),
                eval_dataset=data.validation_blocks,
                accelerator=self.accelerator,
                show_progress=self.show,
                title=name.replace("_", ", "),
            )
            self._keep(folder, model, data.tokenizer)
        return self._load(str(folder))

    def _keep(
        self, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        with atomic_folder(folder) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        self.accelerator.free_memory()  # it holds every model and optimizer it has prepared

    def _work(self, name: str) -> Path:
        return self.folder / "training" / name

    def _load(self, name: str) -> PreTrainedModel:
        model = load_pretrained(name, dtype=getattr(torch, self.config.dtype))
        return model.to(self.accelerator.device)  # pyrefly: ignore

    def finish(
        self,
        measurements: Measurements,
        target: PreTrainedModel,
        drafts: dict[str, PreTrainedModel],
        data: PromptData,
    ) -> Path:
        """Gather the metrics, draw the plots, write the report, drop the checkpoints."""
        rows: list[dict[str, Any]] = []
        for name in ("target", "draft_start", *DRAFTS):
            stage = read_jsonl(self._work(name) / "metrics.jsonl")
            rows += [{**row, "stage": name} for row in stage]
        write_jsonl(self.folder / "metrics.jsonl", rows)
        report = write_summary(
            self.config, self.folder, rows, measurements, target=target, drafts=drafts, data=data
        )
        shutil.rmtree(self.folder / "training", ignore_errors=True)
        return report
