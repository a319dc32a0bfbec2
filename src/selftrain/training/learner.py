"""One optimizer step over rows of tokens, whatever the micro-batches and processes.

The step is the same function of its rows however they are split: the loss is normalised over all of
them, on every process, before anything is added up.

Shape letters: B rows, N scored tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selftrain.nn.modes import training_mode
from selftrain.training.batch import MicroBatch, TokenRow, collate
from selftrain.training.settings import Normalize, StepSettings
from selftrain.training.updates import Updater


@dataclass(frozen=True, slots=True)
class StepLosses:
    """What a forward pass over a micro-batch gives."""

    objective: Tensor
    """What is minimised, a scalar: the sum of every token's loss times its weight. Taking the
    weights beforehand is what lets a loss compute its gradient in the forward pass, one-shot."""
    values: dict[str, Tensor]
    """Values per scored token, each ``[N]``: ``"loss"``, and what else is measured."""


TokenLosses = Callable[[MicroBatch, Tensor], StepLosses]
"""Maps a batch and the weights ``[N]`` of its scored tokens to the losses. The weights hold the
step's normalisation, over all micro-batches and processes."""

# Stands where a process has no row of its own, so that all run the same number of passes.
_FILLER = TokenRow(prompt_ids=(0,), completion_ids=(0,), mask=(False,))


@dataclass(frozen=True, slots=True)
class RowValues:
    """What a pass measured, per row of the whole batch and in its order, on every process."""

    weights: list[float]
    """The rows' weights."""
    counts: list[float]
    """Number of scored tokens."""
    sums: dict[str, list[float]]
    """The sum over each row's scored tokens of every token value."""
    grad_norm: float = 0.0
    """Global norm of the gradient before clipping."""

    def mean(self, name: str, normalize: Normalize, keep: Sequence[bool] | None = None) -> float:
        """Return the weighted mean of a token value as the loss takes it; 0 where nothing counts.

        Args:
            name: Which value.
            normalize: How tokens and sequences are weighed.
            keep: Which rows count; None: all.
        """
        total = weight_sum = 0.0
        for i, (weight, count) in enumerate(zip(self.weights, self.counts, strict=True)):
            if count and (keep is None or keep[i]):
                per_token = weight / count if normalize == "sequence" else weight
                total += per_token * self.sums[name][i]
                weight_sum += per_token * count
        return total / weight_sum if weight_sum else 0.0


class Learner:
    """A model, its optimizer and the processes that train it together.

    Args:
        model: The model to train; only parameters that require gradients are.
        config: Settings of the steps.
        accelerator: The process layer; it must not accumulate gradients itself.

    Raises:
        ValueError: If the accelerator accumulates, or the model has nothing to train.
    """

    def __init__(self, model: nn.Module, config: StepSettings, accelerator: Accelerator) -> None:
        self._updater = Updater(model, config, accelerator)
        self.config, self.accelerator = config, accelerator
        self.module, self.model = model, self._updater.model
        self.optimizer = self._updater.optimizer

    def local_indices(self, num_rows: int) -> list[int]:
        """Return which rows of the batch are this process's; -1 where it has none.

        Process r of n takes rows r, r + n, r + 2n, ...; every process gets equally many entries.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        indices = range(rank, math.ceil(num_rows / world) * world, world)
        return [i if i < num_rows else -1 for i in indices]

    def learn(
        self,
        rows: Mapping[int, TokenRow],
        token_losses: TokenLosses,
        *,
        step: int,
        num_rows: int,
        names: Sequence[str] | None = None,
    ) -> RowValues:
        """Take one optimizer step on the batch; all processes call it together.

        Args:
            rows: This process's rows by their index in the batch (see :meth:`local_indices`).
            token_losses: The loss, and what else to measure.
            step: The step's number, from 0; it sets the learning rate and the dropout masks.
            num_rows: Number of rows in the batch over all processes.
            names: What to call each row of the batch in an error.

        Raises:
            FloatingPointError: If a loss or the gradient is not finite. The parameters are those of
                before the step then.
        """
        batches = self._micro_batches(rows, num_rows)
        weights = self._token_weights(rows, batches)
        measured = []
        updater = self._updater
        with training_mode(True, self.module), updater.dropout_seed(step):
            for i, (indices, batch) in enumerate(batches):
                with updater.synchronised(i == len(batches) - 1):
                    losses = token_losses(batch, weights[i])
                    self.accelerator.backward(losses.objective)
                measured.append((indices, batch, _row_sums(losses.values, batch)))
        result = self._gather(rows, measured, num_rows, updater.clip())
        try:
            self._check_finite(result, step, names)
            updater.update(step)
        finally:
            updater.forget()
        return result

    @torch.no_grad()
    def measure(
        self, rows: Mapping[int, TokenRow], token_losses: TokenLosses, *, num_rows: int
    ) -> RowValues:
        """Return the token values of a batch without learning; the model is in evaluation mode."""
        measured = []
        with training_mode(False, self.module):
            for indices, batch in self._micro_batches(rows, num_rows):
                values = token_losses(batch, torch.ones_like(batch.rows, dtype=torch.float)).values
                measured.append((indices, batch, _row_sums(values, batch)))
        return self._gather(rows, measured, num_rows, torch.zeros(()))

    def _micro_batches(
        self, rows: Mapping[int, TokenRow], num_rows: int
    ) -> list[tuple[list[int], MicroBatch]]:
        # A row of weight 0 is left out altogether: zero times a NaN would not be zero.
        used = {i: row for i, row in rows.items() if row.weight}
        # Rows of like length share a micro-batch: less padding.
        indices = self.local_indices(num_rows)
        indices.sort(key=lambda i: -_length(used.get(i, _FILLER)))
        world = self.accelerator.num_processes
        size = self.config.micro_batch_size or math.ceil(self.config.batch_size / world)
        batches = []
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            batch = collate(
                [used.get(i, _FILLER) for i in part],
                decoder_start_id=self._updater.decoder_start_id,
            )
            batches.append((part, batch.to(self.accelerator.device)))
        return batches

    def _token_weights(
        self, rows: Mapping[int, TokenRow], batches: list[tuple[list[int], MicroBatch]]
    ) -> list[Tensor]:
        """Return each scored token's factor in the loss, the global denominator included."""
        factors, total = [], 0.0
        for indices, batch in batches:
            weights = [rows[i].weight if i in rows else 0.0 for i in indices]
            if self.config.normalize == "sequence":
                weights = [w / max(n, 1) for w, n in zip(weights, batch.counts, strict=True)]
            total += math.fsum(w * n for w, n in zip(weights, batch.counts, strict=True))
            factors.append(torch.tensor(weights, dtype=torch.float64))
        world = self.accelerator.num_processes
        if world > 1:
            device = self.accelerator.device
            total = float(self.accelerator.reduce(torch.tensor(total, device=device), "sum"))
        # Data parallelism averages the gradients of the processes: times their number undoes it.
        scale = world / total if total else 0.0
        return [
            (factor * scale).float().to(batch.rows.device)[batch.rows]
            for factor, (_, batch) in zip(factors, batches, strict=True)
        ]

    def _gather(
        self,
        rows: Mapping[int, TokenRow],
        measured: list[tuple[list[int], MicroBatch, dict[str, Tensor]]],
        num_rows: int,
        norm: Tensor,
    ) -> RowValues:
        """Bring the sums of all processes to the host, in the order of the batch, in one copy."""
        names = list(measured[0][2])
        device = self.accelerator.device
        host = [
            (i, rows[i].weight if i in rows else 0.0, n)
            for indices, batch, _ in measured
            for i, n in zip(indices, batch.counts, strict=True)
        ]
        sums = torch.cat([torch.stack([s[k] for k in names], 1) for _, _, s in measured])
        local = torch.cat([torch.tensor(host, device=device, dtype=sums.dtype), sums], 1)
        table = self.accelerator.gather(local) if self.accelerator.num_processes > 1 else local
        norm = norm.to(device=device, dtype=sums.dtype).expand(len(table), 1)
        lines = sorted(line for line in torch.cat([table, norm], 1).tolist() if line[0] >= 0)
        if len(lines) != num_rows:
            raise RuntimeError(f"gathered {len(lines)} rows of {num_rows}; ranks disagree.")
        return RowValues(
            weights=[line[1] for line in lines],
            counts=[line[2] for line in lines],
            sums={name: [line[3 + k] for line in lines] for k, name in enumerate(names)},
            grad_norm=lines[0][-1],
        )

    def _check_finite(self, result: RowValues, step: int, names: Sequence[str] | None) -> None:
        for i, loss in enumerate(result.sums["loss"]):
            if not math.isfinite(loss) and result.weights[i]:
                raise FloatingPointError(
                    f"step {step}: the loss of {names[i] if names else f'row {i}'} is {loss}. The "
                    "parameters were not updated. Look at this row, or lower the learning rate."
                )
        self._updater.check_norm(result.grad_norm, step)


def _row_sums(values: dict[str, Tensor], batch: MicroBatch) -> dict[str, Tensor]:
    """Sum every token value over each row's tokens."""
    zeros = torch.zeros(len(batch.counts), device=batch.rows.device)
    return {k: zeros.index_add(0, batch.rows, v.detach().float()) for k, v in values.items()}


def _length(row: TokenRow) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)
