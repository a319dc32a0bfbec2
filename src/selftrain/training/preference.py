"""Direct preference optimisation over groups: every correct answer against every wrong one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from accelerate import Accelerator
from torch import nn

from selftrain._core.checks import check_choice, check_int, check_not_empty, check_range
from selftrain.training.log_probs import check_scored
from selftrain.training.loop import Report, TrainingRun
from selftrain.training.optim import OptimConfig, learning_rate_at
from selftrain.training.order import batch_indices
from selftrain.training.preference_loss import PreferenceGroup, num_pairs_of
from selftrain.training.preference_step import GroupStep
from selftrain.training.row_scores import RowScorer
from selftrain.training.settings import RunSettings, check_run_settings
from selftrain.training.snapshot import weights_fingerprint
from selftrain.training.updates import Updater

ProblemWeighting = Literal["pair", "problem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """Settings of :func:`train_preferences`."""

    beta: float = 0.1
    """How strongly the reference holds the model."""
    label_smoothing: float = 0.0
    """Assumed share of pairs in the wrong order, in [0, 0.5)."""
    problem_weighting: ProblemWeighting = "pair"
    """Whether every pair weighs the same over an epoch, or every problem."""
    num_steps: int | None = None
    """Optimizer steps of the whole run; None: as many as ``num_epochs`` take."""
    num_epochs: int | None = None
    """Passes over the groups; None: one, or what ``num_steps`` come to."""
    batch_size: int = 8
    """Groups (problems) per optimizer step, over all processes."""
    micro_batch_tokens: int = 16384
    """Tokens per forward pass on one process, padding included. A group that needs more is read
    twice."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
    """The optimizer and the learning rate."""
    seed: int = 0
    """Sets the order of the groups."""
    log_every: int = 10
    """Steps between rows of metrics."""
    save_every: int | None = 100
    """Steps between checkpoints; None: only after the last step."""
    eval_every: int | None = None
    """Steps between evaluations; None: only after the last step."""

    def __post_init__(self) -> None:
        check_range("beta", self.beta, low=0.0, low_open=True)
        check_range("label_smoothing", self.label_smoothing, low=0.0, high=0.5, high_open=True)
        check_choice("problem_weighting", self.problem_weighting, ("pair", "problem"))
        for name in ("num_steps", "num_epochs"):
            value = getattr(self, name)
            if value is not None:
                check_int(name, value, low=1)
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError(
                f"num_steps={self.num_steps} and num_epochs={self.num_epochs} are both given; "
                "give one of them."
            )
        check_int("micro_batch_tokens", self.micro_batch_tokens, low=1)
        check_run_settings(cast(RunSettings, self))

    def resolved(self, num_groups: int) -> "PreferenceConfig":
        """Return the configuration with ``num_steps`` instead of ``num_epochs``."""
        if self.num_steps is not None:
            return self
        num_steps = -(-num_groups * (self.num_epochs or 1) // self.batch_size)
        return replace(self, num_steps=num_steps, num_epochs=None)


def train_preferences(
    model: nn.Module,
    groups: Sequence[PreferenceGroup],
    config: PreferenceConfig | None = None,
    *,
    output_dir: str | Path | None = None,
    eval_groups: Sequence[PreferenceGroup] | None = None,
    reference: str | None = None,
    accelerator: Accelerator | None = None,
    show_progress: bool = True,
    title: str = "preference",
) -> Report:
    r"""Train a model to rank correct answers above wrong ones, in place.

    The loss of a problem is :func:`dpo_loss` over the Cartesian product of its correct and wrong
    answers. Every answer is read once, not once for every pair that it is in; the gradient is the
    same. A shared prompt is read once for all of a group's answers where the model allows it. The
    model is in evaluation mode, that is without dropout, as the reference was: the loss begins at
    ln 2. (Layers therefore do not compute activations again in the backward pass; where memory is
    short, lower ``micro_batch_tokens``.)

    Rerun with the same arguments after an interruption, it continues from the last checkpoint, and
    on a CPU the result equals that of an uninterrupted run bit for bit.

    Args:
        model: Returns logits the Hugging Face way; decoder-only or encoder-decoder, with adapters
            or without.
        groups: One for each problem, with the log-probabilities under the reference; see
            :func:`selftrain.training.sequence_log_probs`. All processes pass all of them.
        config: Settings; None: the defaults.
        output_dir: Where metrics and the newest checkpoint go; None: nothing is written.
        eval_groups: Groups of other problems; measured as ``eval/loss`` and so on.
        reference: The :func:`selftrain.training.weights_fingerprint` of the model that the
            reference log-probabilities are of; checked if given, since the loss means little unless
            the model starts from there.
        accelerator: The process layer; None makes one.
        show_progress: Whether to show a bar with the loss and the time left.
        title: The run's name on the bar and in the log.

    Returns:
        The metrics logged: ``loss``, ``accuracy`` (the share of pairs ranked rightly, ties counted
        half), ``margin`` (the mean of :math:`m_{ij}`), ``grad_norm``, ``learning_rate``,
        ``num_pairs``, ``sequences_per_second`` and, if asked for, ``eval/loss``, ``eval/accuracy``
        and ``eval/margin``. Means are over the pairs or the problems, as they are weighed.

    Raises:
        ValueError: If there is no group, one has an answer without a scored token, or the model is
            not the reference.
        RunConflictError: If ``output_dir`` holds a run with another configuration.
        FloatingPointError: If a log-probability is not finite; the message names step and group.
    """
    check_not_empty("groups", groups)
    _check_groups("groups", groups, model)
    if eval_groups is not None:
        check_not_empty("eval_groups", eval_groups)
        _check_groups("eval_groups", eval_groups, model)
    if reference is not None and weights_fingerprint(model) != reference:
        raise ValueError(
            f"reference={reference!r}, but the model's weights are {weights_fingerprint(model)!r}: "
            "the reference log-probabilities are of another model than training starts from. Load "
            "the reference's weights, or compute the log-probabilities anew."
        )
    config = (config or PreferenceConfig()).resolved(len(groups))
    settings = cast(RunSettings, config)  # now that it has num_steps
    updater = Updater(model, settings, accelerator or Accelerator())
    scorer = RowScorer(model, updater.accelerator)
    mean_pairs = num_pairs_of(groups) / len(groups)
    group_step = GroupStep(updater, scorer, config, mean_pairs=mean_pairs)
    with TrainingRun(
        updater, stage=title, output_dir=output_dir, show_progress=show_progress
    ) as run:
        for step in run.steps():
            start = time.perf_counter()
            chosen = batch_indices(
                config.seed, step, num_items=len(groups), batch_size=config.batch_size
            )
            result = group_step.learn([groups[i] for i in chosen], step=step, names=chosen)
            metrics = result.metrics(config.problem_weighting)
            num_sequences = sum(groups[i].num_sequences for i in chosen)
            metrics |= {
                "grad_norm": result.grad_norm,
                "learning_rate": learning_rate_at(step, settings.num_steps, config.optim),
                "num_pairs": sum(groups[i].num_pairs for i in chosen),
                "sequences_per_second": num_sequences / (time.perf_counter() - start),
            }
            if eval_groups is not None and run.eval_due(step):
                measured = group_step.measure(eval_groups).metrics(config.problem_weighting)
                metrics |= {f"eval/{name}": value for name, value in measured.items()}
            run.finish_step(step, metrics)
    return run.report()


def _check_groups(name: str, groups: Sequence[PreferenceGroup], model: nn.Module) -> None:
    for i, group in enumerate(groups):
        check_scored(f"{name}[{i}].chosen", group.chosen, model)
        check_scored(f"{name}[{i}].rejected", group.rejected, model)
