"""The outcome reward model: a language model with a second head that says whether it is right.

The baseline of Cobbe et al. (arXiv 2110.14168). The loss is that of the language model on the
answer, and beside it the binary cross-entropy of the answer's correctness, read at its last token
or at each.

Shape letters: B rows, N scored tokens, H hidden size.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from selftrain._core.checks import check_choice, check_not_empty, check_range
from selftrain._core.config import load_json, save_json
from selftrain._core.io import load_tensors, save_tensors
from selftrain.decoding.prompts import Prompt
from selftrain.loops.candidates import Candidate, CandidateReader, best_of
from selftrain.loops.pairs import Answers
from selftrain.nn.modes import training_mode
from selftrain.ops.linear_divergence import linear_cross_entropy
from selftrain.tasks.base import Problem
from selftrain.training.batch import MicroBatch, TokenRow, collate
from selftrain.training.heads import find_head, scored_hidden
from selftrain.training.learner import Learner, RowValues, StepLosses
from selftrain.training.loop import Report, TrainingRun
from selftrain.training.optim import OptimConfig, learning_rate_at
from selftrain.training.order import batch_indices
from selftrain.training.pretrained import load_pretrained, save_model
from selftrain.training.row_scores import token_batches
from selftrain.training.settings import Normalize, check_step_settings

ReadAt = Literal["final", "every"]

_SETTINGS, _VALUE_HEAD = "outcome_reward.json", "value_head.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeRewardConfig:
    """Settings of :func:`train_outcome_reward`."""

    read_at: ReadAt = "every"
    """Where the correctness is predicted while training: at the answer's last token, or at each. A
    score is always read at the last one."""
    language_weight: float = 1.0
    """Factor of the language model's loss, which keeps the features from being forgotten."""
    num_steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 32
    """Answers per optimizer step, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Answers per forward pass on one process; None: all of them."""
    normalize: Normalize = "sequence"
    """Average over the tokens of each answer and then answers, or over all tokens."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
    """The optimizer and the learning rate."""
    seed: int = 0
    """Sets the order of the data and the dropout masks."""
    log_every: int = 10
    """Steps between rows of metrics."""
    save_every: int | None = 100
    """Steps between checkpoints; None: only after the last step."""
    eval_every: int | None = None
    """Steps between evaluations; None: only after the last step."""

    def __post_init__(self) -> None:
        check_choice("read_at", self.read_at, ("final", "every"))
        check_range("language_weight", self.language_weight, low=0.0)
        check_step_settings(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeRewardSettings:
    """What is written beside the weights."""

    max_tokens: int
    """Tokens in a forward pass."""


class OutcomeRewardModel(nn.Module):
    """Scores completions by the probability that they are correct.

    Args:
        backbone: A causal language model whose head is a plain linear layer.
        tokenizer: Its tokenizer.
        max_tokens: Tokens in a forward pass when scoring, padding included.

    Raises:
        ValueError: If the backbone's last hidden states cannot be found.
    """

    def __init__(
        self, backbone: Any, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 16384
    ) -> None:
        super().__init__()
        access = find_head(backbone, slices_logits=False)
        if access is None:
            raise ValueError(
                "backbone has no plain linear head to take the last hidden states from; use "
                "another model, without adapters on its head."
            )
        self.backbone, self.tokenizer = backbone, tokenizer
        weight = access.module.weight
        self.value_head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
        # Every answer begins at probability one half.
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._access, self._max_tokens = access, max_tokens
        self._reader = CandidateReader(backbone, tokenizer)

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.backbone.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the backbone."""
        return self.backbone(*args, **kwargs)

    def losses(
        self, model: nn.Module, batch: MicroBatch, weights_N: Tensor, config: OutcomeRewardConfig
    ) -> StepLosses:
        """Return the joint loss of a batch whose rows have labels.

        Args:
            model: This module, or what wraps it for several processes.
            batch: The answers.
            weights_N: The weight of each scored token.
            config: Where correctness is read, and how much the language counts.
        """
        targets = scored_hidden(model, batch, self._access)
        language = linear_cross_entropy(
            targets.hidden, targets.head, batch.labels, weights_N, measure=False
        )
        logits_N = self._values(targets.hidden)
        labels = [float(row.label or 0.0) for row in batch.token_rows]
        labels_N = torch.tensor(labels, device=logits_N.device)[batch.rows]
        value_N = F.binary_cross_entropy_with_logits(logits_N, labels_N, reduction="none")
        last_N = _last_of_row(batch.rows)
        read_N = value_N
        if config.read_at == "final":
            # The last token stands for all of the row's, and has the weight of one.
            counts_B = torch.tensor(batch.counts, device=value_N.device)
            read_N = value_N * last_N * counts_B[batch.rows]
        objective = config.language_weight * language.loss + (read_N * weights_N).sum()
        right_N = ((logits_N > 0) == (labels_N > 0.5)).float() * last_N
        values = {"language": language.values["loss"], "value": value_N.detach() * last_N}
        loss_N = config.language_weight * values["language"] + read_N.detach()
        return StepLosses(objective, {"loss": loss_N, "right": right_N, **values})

    def score(self, prompt: Prompt | Problem, completions: Sequence[Candidate]) -> Tensor:
        """Return the probability of every completion of one prompt to be correct."""
        return self.score_all([prompt], [completions])[0]

    def score_all(
        self, prompts: Sequence[Prompt | Problem], completions: Sequence[Sequence[Candidate]]
    ) -> list[Tensor]:
        """Return the probability of each completion to be correct, in [0, 1].

        Args:
            prompts: As in :meth:`selftrain.loops.Verifier.score_all`.
            completions: Likewise.
        """
        return self._reader.score_all(prompts, completions, self.score_rows)

    def best(self, prompt: Prompt | Problem, completions: Sequence[Candidate]) -> int:
        """Return the place of the completion with the highest score, the first of equal ones."""
        return best_of(self.score(prompt, completions))

    @torch.no_grad()
    def score_rows(self, rows: Sequence[TokenRow]) -> Tensor:
        """Return the probability of every row to be correct, float64 ``[rows]``."""
        result = torch.zeros(len(rows), dtype=torch.float64)
        device = self.value_head.weight.device
        with training_mode(False, self):
            for numbers in token_batches(rows, self._max_tokens):
                batch = collate([rows[i] for i in numbers]).to(device)
                logits_N = self._values(scored_hidden(self, batch, self._access).hidden)
                last = logits_N[_last_of_row(batch.rows).bool()]
                result[torch.tensor(numbers)] = last.double().sigmoid().cpu()
        return result

    def save(self, folder: str | Path) -> None:
        """Write backbone, tokenizer, value head and settings."""
        folder = Path(folder)
        save_model(self.backbone, self.tokenizer, folder)
        save_tensors(folder / _VALUE_HEAD, dict(self.value_head.state_dict()))
        save_json(OutcomeRewardSettings(max_tokens=self._max_tokens), folder / _SETTINGS)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the folder holds no outcome reward model.
        """
        folder = Path(folder)
        if not (folder / _SETTINGS).exists():
            raise ValueError(f"{folder} holds no outcome reward model: {_SETTINGS} is missing.")
        settings = load_json(OutcomeRewardSettings, folder / _SETTINGS)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model = cls(load_pretrained(folder), tokenizer, max_tokens=settings.max_tokens)
        model.value_head.load_state_dict(load_tensors(folder / _VALUE_HEAD))
        return model.eval()

    def _values(self, hidden_NH: Tensor) -> Tensor:
        return self.value_head(hidden_NH.to(self.value_head.weight.dtype)).squeeze(-1).float()


def outcome_rows(groups: Sequence[Answers]) -> list[TokenRow]:
    """Return the answers of groups with their labels: 1 for correct ones, 0 for wrong ones.

    Args:
        groups: From :func:`selftrain.loops.answer_groups`.
    """
    return [
        replace(row, label=label)
        for group in groups
        for rows, label in ((group.correct, 1.0), (group.wrong, 0.0))
        for row in rows
    ]


def train_outcome_reward(
    model: OutcomeRewardModel,
    rows: Sequence[TokenRow],
    config: OutcomeRewardConfig | None = None,
    *,
    output_dir: str | Path | None = None,
    eval_rows: Sequence[TokenRow] | None = None,
    accelerator: Accelerator | None = None,
    show_progress: bool = True,
    title: str = "outcome reward",
) -> Report:
    """Train an outcome reward model, in place.

    Rerun with the same arguments after an interruption, it continues from the last checkpoint, and
    on a CPU the result equals that of an uninterrupted run bit for bit.

    Args:
        model: The model.
        rows: Answers with labels in [0, 1], from :func:`outcome_rows` for example.
        config: Settings; None: the defaults.
        output_dir: Where metrics and the newest checkpoint go; None: nothing is written.
        eval_rows: Answers to other problems; measured as ``eval/loss`` and so on.
        accelerator: The process layer; None makes one.
        show_progress: Whether to show a bar with the loss and the time left.
        title: The run's name on the bar and in the log.

    Returns:
        The metrics logged: ``loss``, ``language_loss``, ``value_loss`` and ``accuracy`` (both at
        the last token), ``grad_norm``, ``learning_rate``, ``rows_per_second`` and, if asked for,
        the first four as ``eval/...``.

    Raises:
        ValueError: If there is no row, or one has no label.
        RunConflictError: If ``output_dir`` holds a run with another configuration.
        FloatingPointError: If the loss is not finite; the message names step and row.
    """
    config = config or OutcomeRewardConfig()
    _check_labels("rows", rows)
    if eval_rows is not None:
        _check_labels("eval_rows", eval_rows)
    learner = Learner(model, config, accelerator or Accelerator())

    def token_losses(batch: MicroBatch, weights: Tensor) -> StepLosses:
        return model.losses(learner.model, batch, weights, config)

    with TrainingRun(
        learner, stage=title, output_dir=output_dir, show_progress=show_progress
    ) as run:
        for step in run.steps():
            start = time.perf_counter()
            chosen = batch_indices(
                config.seed, step, num_items=len(rows), batch_size=config.batch_size
            )
            local = {i: rows[chosen[i]] for i in learner.local_indices(len(chosen)) if i >= 0}
            names = [f"row {i}" for i in chosen]
            result = learner.learn(
                local, token_losses, step=step, num_rows=len(chosen), names=names
            )
            metrics = {
                **_means(result, config),
                "grad_norm": result.grad_norm,
                "learning_rate": learning_rate_at(step, config.num_steps, config.optim),
                "rows_per_second": len(chosen) / (time.perf_counter() - start),
            }
            if eval_rows is not None and run.eval_due(step):
                indices = learner.local_indices(len(eval_rows))
                local = {i: eval_rows[i] for i in indices if i >= 0}
                result = learner.measure(local, token_losses, num_rows=len(eval_rows))
                means = _means(result, config)
                metrics |= {f"eval/{name}": value for name, value in means.items()}
            run.finish_step(step, metrics)
    return run.report()


def _means(result: RowValues, config: OutcomeRewardConfig) -> dict[str, float]:
    return {
        "loss": result.mean("loss", config.normalize),
        "language_loss": result.mean("language", config.normalize),
        "value_loss": sum(result.sums["value"]) / len(result.counts),
        "accuracy": sum(result.sums["right"]) / len(result.counts),
    }


def _check_labels(name: str, rows: Sequence[TokenRow]) -> None:
    check_not_empty(name, rows)
    for i, row in enumerate(rows):
        if row.label is None:
            raise ValueError(f"{name}[{i}] has no label; set 1 for correct, 0 for wrong answers.")


def _last_of_row(rows_N: Tensor) -> Tensor:
    """Return 1 at the last scored token of every row, else 0; tokens of a row are in sequence."""
    last_N = torch.ones(len(rows_N), device=rows_N.device)
    last_N[:-1] = (rows_N[1:] != rows_N[:-1]).float()
    return last_N
