"""Supervised fine-tuning: masked next-token loss with a weight per example."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from selftrain._core.checks import check_int, check_not_empty
from selftrain.nn.modes import training_mode
from selftrain.training.batch import MicroBatch, TokenRow, scored_logits, takes_logits_to_keep
from selftrain.training.best import Best, Judge
from selftrain.training.learner import Learner, RowValues, StepLosses, TokenLosses
from selftrain.training.loop import Report, TrainingRun
from selftrain.training.optim import OptimConfig, learning_rate_at
from selftrain.training.order import batch_indices
from selftrain.training.settings import Normalize, check_step_settings
from selftrain.training.snapshot import Snapshot


class Rows(Protocol):
    """Rows by number: a list of dicts, a ``datasets.Dataset``, or anything alike."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one row, a mapping."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Settings of :func:`finetune`."""

    num_steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 32
    """Rows per optimizer step, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Rows per forward pass on one process; None: all of them."""
    normalize: Normalize = "token"
    """Average the loss over all tokens, or over the tokens of each sequence and then sequences."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and the learning rate."""
    seed: int = 0
    """Sets the order of the data and the dropout masks."""
    log_every: int = 10
    """Steps between rows of metrics."""
    save_every: int | None = 100
    """Steps between checkpoints; None: only after the last step."""
    eval_every: int | None = None
    """Steps between evaluations; None: only after the last step."""
    patience: int | None = None
    """Evaluations without a better one after which training stops; None: never. Needs
    ``keep_best``."""

    def __post_init__(self) -> None:
        check_step_settings(self)
        if self.patience is not None:
            check_int("patience", self.patience, low=1)


def finetune(
    model: nn.Module,
    dataset: Rows,
    config: FinetuneConfig | None = None,
    *,
    output_dir: str | Path | None = None,
    eval_dataset: Rows | None = None,
    judge: Judge | None = None,
    keep_best: str | None = None,
    accelerator: Accelerator | None = None,
    show_progress: bool = True,
    title: str = "finetune",
) -> Report:
    """Train a language model on the next tokens of a data set, in place.

    The loss is the mean of -log q(token) over scored tokens, weighted by each row's ``weight``.
    Rerun with the same arguments after an interruption, it continues from the last checkpoint, and
    on a CPU the result equals that of an uninterrupted run bit for bit.

    Args:
        model: Returns logits the Hugging Face way; decoder-only or encoder-decoder.
        dataset: Rows ``{"input_ids", "mask"}`` (the mask, one bool per token, is optional), or
            ``{"prompt_ids", "completion_ids"}`` of which only the completion is scored (and which
            an encoder-decoder needs); both with an optional ``"weight"`` (default 1).
        config: Settings; None: the defaults.
        output_dir: Where metrics and the newest checkpoint go; None: nothing is written.
        eval_dataset: Rows of the same form; their loss is logged as ``eval/loss``.
        judge: Called with the model whenever it is evaluated, on all processes, and returns the
            same numbers on all of them, to log as ``eval/...``.
        keep_best: Which of the evaluation's numbers to choose the model by: the parameters with
            which it was largest are the model's at the end. They lie in ``output_dir/best``.
        accelerator: The process layer; None makes one.
        show_progress: Whether to show a bar with the loss and the time left.
        title: The run's name on the bar and in the log.

    Returns:
        The metrics logged: ``loss``, ``grad_norm``, ``learning_rate``, ``num_scored_tokens``,
        ``tokens_per_second`` and, if asked for, ``eval/loss``.

    Raises:
        ValueError: If a data set is empty or a row is not of this form, or if ``keep_best`` or
            ``patience`` lacks what it needs.
        RunConflictError: If ``output_dir`` holds a run with another configuration.
        FloatingPointError: If the loss is not finite; the message names step and row.
    """
    config = config or FinetuneConfig()
    check_not_empty("dataset", dataset)
    token_row(dataset[0])
    if eval_dataset is not None:
        check_not_empty("eval_dataset", eval_dataset)
    if config.patience is not None and keep_best is None:
        raise ValueError(f"patience={config.patience} needs keep_best, the number to be better in.")
    best = Best(output_dir, keep_best, judged=judge is not None or eval_dataset is not None)
    slices_logits = takes_logits_to_keep(model)
    learner = Learner(model, config, accelerator or Accelerator())

    def token_losses(batch: MicroBatch, weights: Tensor) -> StepLosses:
        logits = scored_logits(learner.model, batch, slices_logits=slices_logits)
        loss = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        return StepLosses((loss * weights).sum(), {"loss": loss})

    with TrainingRun(
        learner, stage=title, output_dir=output_dir, show_progress=show_progress
    ) as run:
        for step in run.steps():
            if _is_stale(best, step, learner):
                break
            start = time.perf_counter()
            chosen = batch_indices(
                config.seed, step, num_items=len(dataset), batch_size=config.batch_size
            )
            rows = _local_rows(learner, dataset, chosen)
            names = [f"row {i}" for i in chosen]
            result = learner.learn(rows, token_losses, step=step, num_rows=len(chosen), names=names)
            metrics = _metrics(result, config, step, time.perf_counter() - start)
            if run.eval_due(step):
                found = {} if judge is None else dict(_judged(model, judge))
                if eval_dataset is not None:
                    found["loss"] = _evaluate(learner, eval_dataset, token_losses)
                metrics |= {f"eval/{name}": value for name, value in found.items()}
                if learner.accelerator.is_main_process:
                    best.offer(found, step + 1, lambda path: Snapshot.take(model).save(path))
            run.finish_step(step, metrics)
    if best.folder is not None:
        learner.accelerator.wait_for_everyone()
        Snapshot.load(best.folder).restore(model)
    return run.report()


def _judged(model: nn.Module, judge: Judge) -> Mapping[str, float]:
    with training_mode(False, model), torch.no_grad():
        return judge(model)


def _is_stale(best: Best, steps: int, learner: Learner) -> bool:
    """Return whether the last ``patience`` evaluations brought nothing better."""
    config: Any = learner.config
    patience, every = config.patience, config.eval_every
    if patience is None or every is None or steps % every:
        return False
    stale = best.step is not None and steps - best.step >= patience * every
    if learner.accelerator.num_processes > 1:
        # Only the main process knows for sure what lies on the disk.
        flag = torch.tensor(float(stale and learner.accelerator.is_main_process))
        flag = flag.to(learner.accelerator.device)
        return bool(learner.accelerator.reduce(flag, "sum"))
    return stale


def token_row(row: Mapping[str, Any]) -> TokenRow:
    """Read one row of a data set; see :func:`finetune` for the forms.

    Raises:
        ValueError: If it is of neither form.
    """
    weight = float(row.get("weight", 1.0))
    if "input_ids" in row:
        mask = row.get("mask")
        return TokenRow(
            completion_ids=tuple(row["input_ids"]),
            mask=None if mask is None else tuple(bool(m) for m in mask),
            weight=weight,
        )
    if "prompt_ids" in row and "completion_ids" in row:
        return TokenRow(
            prompt_ids=tuple(row["prompt_ids"]),
            completion_ids=tuple(row["completion_ids"]),
            weight=weight,
        )
    raise ValueError(
        'a row needs "input_ids" (and optionally "mask"), or "prompt_ids" and "completion_ids"; '
        f"it has {', '.join(sorted(row)) or 'nothing'}."
    )


def _local_rows(learner: Learner, dataset: Rows, chosen: Sequence[int]) -> dict[int, TokenRow]:
    indices = learner.local_indices(len(chosen))
    return {i: token_row(dataset[chosen[i]]) for i in indices if i >= 0}


def _metrics(
    result: RowValues, config: FinetuneConfig, step: int, seconds: float
) -> dict[str, float]:
    num_tokens = sum(result.counts)
    return {
        "loss": result.mean("loss", config.normalize),
        "grad_norm": result.grad_norm,
        "learning_rate": learning_rate_at(step, config.num_steps, config.optim),
        "num_scored_tokens": num_tokens,
        "tokens_per_second": num_tokens / seconds,
    }


def _evaluate(learner: Learner, dataset: Rows, token_losses: TokenLosses) -> float:
    rows = _local_rows(learner, dataset, range(len(dataset)))
    result = learner.measure(rows, token_losses, num_rows=len(dataset))
    return result.mean("loss", learner.config.normalize)
