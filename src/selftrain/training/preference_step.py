"""One optimizer step over groups of answers, whatever the passes and processes.

The gradient of the loss with respect to a parameter is a sum over answers: a number, which depends
on all answers to the problem, times the gradient of the answer's log-probability. Where one pass
sees whole groups, the numbers come out of it. Else all answers are read first, without gradient.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selftrain.nn.modes import training_mode
from selftrain.training.batch import TokenRow
from selftrain.training.preference_loss import PairSums, PreferenceGroup, pair_sums
from selftrain.training.preference_plan import Part, Plan, make_plan
from selftrain.training.row_scores import RowScorer
from selftrain.training.updates import Updater

# Stands where a process has nothing left to read, so that all run the same number of passes.
_FILLER = TokenRow(prompt_ids=(0,), completion_ids=(0,), mask=(False,))


class PreferenceSettings(Protocol):
    """What the step takes from the configuration."""

    @property
    def beta(self) -> float:
        """See :func:`selftrain.training.dpo_loss`."""
        ...

    @property
    def label_smoothing(self) -> float:
        """Likewise."""
        ...

    @property
    def problem_weighting(self) -> str:
        """Whether pairs or problems weigh the same."""
        ...

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens per forward pass."""
        ...


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What a pass measured, a number for each group of the batch in its order."""

    loss: list[float]
    """Sums over the group's pairs of the loss."""
    right: list[float]
    """Numbers of pairs ranked rightly, ties counted half."""
    margin: list[float]
    """Sums of the margins."""
    num_pairs: list[int]
    """Numbers of pairs."""
    grad_norm: float = 0.0
    """Global norm of the gradient before clipping."""

    def metrics(self, weighting: str) -> dict[str, float]:
        """Return the means over pairs, or over problems of the means over their pairs."""
        weights = [1.0 / n if weighting == "problem" else 1.0 for n in self.num_pairs]
        total = sum(w * n for w, n in zip(weights, self.num_pairs, strict=True))
        sums = {"loss": self.loss, "accuracy": self.right, "margin": self.margin}
        return {
            name: math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
            for name, values in sums.items()
        }


class GroupStep:
    """Takes optimizer steps on groups.

    Args:
        updater: The model, the optimizer and the processes.
        scorer: Reads rows with the model.
        config: Settings of the loss.
        mean_pairs: Pairs of a group on average over the whole data. With the weighting "pair" a
            step divides by it, not by the pairs that it happens to have: so every pair weighs the
            same over an epoch.
    """

    def __init__(
        self, updater: Updater, scorer: RowScorer, config: PreferenceSettings, *, mean_pairs: float
    ) -> None:
        self._updater, self._scorer, self._config = updater, scorer, config
        self._mean_pairs = mean_pairs

    def learn(
        self, groups: Sequence[PreferenceGroup], *, step: int, names: Sequence[int]
    ) -> GroupResult:
        """Take one step; all processes call it together with the same groups.

        Args:
            groups: The batch.
            step: The step's number, from 0; it sets the learning rate.
            names: The groups' numbers in the data, for errors.

        Raises:
            FloatingPointError: If a log-probability or the gradient is not finite. The parameters
                are those of before the step then.
        """
        updater, plan = self._updater, self._plan(groups)
        with training_mode(False, updater.module):
            known = self._read(plan, split_only=True)
            sums = self._accumulate(groups, plan, known)
        try:
            result = self._gather(groups, plan, sums, updater.clip(), step=step, names=names)
            updater.check_norm(result.grad_norm, step)
            updater.update(step)
        finally:
            updater.forget()
        return result

    @torch.no_grad()
    def measure(self, groups: Sequence[PreferenceGroup]) -> GroupResult:
        """Return the measures of groups without learning."""
        plan = self._plan(groups)
        with training_mode(False, self._updater.module):
            log_probs = self._read(plan, split_only=False)
        sums = {}
        for part, values in zip(plan.parts, log_probs, strict=True):
            assert values is not None  # noqa: S101
            sums |= self._sums(groups, part, values)
        return self._gather(groups, plan, sums, torch.zeros(()))

    def _plan(self, groups: Sequence[PreferenceGroup]) -> Plan:
        accelerator = self._updater.accelerator
        return make_plan(
            groups,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            max_tokens=self._config.micro_batch_tokens,
            by_prompt=self._scorer.shares,
        )

    @torch.no_grad()
    def _read(self, plan: Plan, *, split_only: bool) -> list[Tensor | None]:
        """Return the log-probabilities of each part's rows; None for parts that are not read."""
        device = self._updater.accelerator.device
        result: list[Tensor | None] = [
            torch.zeros(len(part.rows), dtype=torch.float64, device=device)
            if part.is_split or not split_only
            else None
            for part in plan.parts
        ]
        done = 0
        for values, part in zip(result, plan.parts, strict=True):
            for rows in part.passes if values is not None else ():
                scores = self._scorer(self._updater.model, [part.rows[i] for i in rows])
                values[list(rows)] = scores.log_probs()  # pyrefly: ignore[unsupported-operation]
                done += 1
        for _ in range((plan.num_readings if split_only else plan.num_passes) - done):
            self._scorer(self._updater.model, [_FILLER])
        return result

    def _accumulate(
        self, groups: Sequence[PreferenceGroup], plan: Plan, known: Sequence[Tensor | None]
    ) -> dict[int, PairSums]:
        """Add up the gradient of all passes; return the sums of this process's groups."""
        updater = self._updater
        sums: dict[int, PairSums] = {}
        for number, (part, values, rows) in enumerate(_passes(plan, known)):
            with updater.synchronised(number == plan.num_passes - 1):
                scores = self._scorer(updater.model, [part.rows[i] for i in rows])
                if part.groups and part.groups[0] not in sums:
                    values = scores.log_probs() if values is None else values
                    sums |= self._sums(groups, part, values)
                weights = self._weights(groups, part, sums)
                updater.accelerator.backward(scores.objective(weights[list(rows)]))
        return sums

    def _sums(
        self, groups: Sequence[PreferenceGroup], part: Part, log_probs: Tensor
    ) -> dict[int, PairSums]:
        sums, start = {}, 0
        for i in part.groups:
            group = groups[i]
            stop = start + group.num_sequences
            reference = torch.tensor(group.reference, dtype=torch.float64)
            ratios = log_probs[start:stop] - reference.to(log_probs.device)
            sums[i] = pair_sums(
                ratios,
                len(group.chosen),
                beta=self._config.beta,
                label_smoothing=self._config.label_smoothing,
            )
            start = stop
        return sums

    def _weights(
        self, groups: Sequence[PreferenceGroup], part: Part, sums: dict[int, PairSums]
    ) -> Tensor:
        """Return the derivative of the step's loss with respect to each row's log-probability."""
        # Data parallelism averages the gradients of the processes: times their number undoes it.
        scale = self._updater.accelerator.num_processes / len(groups)
        weights = [torch.zeros(len(part.rows) if not part.groups else 0)]
        for i in part.groups:
            by_problem = self._config.problem_weighting == "problem"
            pairs = groups[i].num_pairs if by_problem else self._mean_pairs
            weights.append(sums[i].gradient * (scale / pairs))
        device = self._updater.accelerator.device
        return torch.cat([w.to(device=device, dtype=torch.float64) for w in weights])

    def _gather(
        self,
        groups: Sequence[PreferenceGroup],
        plan: Plan,
        sums: dict[int, PairSums],
        norm: Tensor,
        *,
        step: int | None = None,
        names: Sequence[int] | None = None,
    ) -> GroupResult:
        """Bring the sums of all processes to the host, in the order of the batch, in one copy."""
        accelerator = self._updater.accelerator
        device = accelerator.device
        table = torch.full((plan.num_groups, 4), -1.0, dtype=torch.float64, device=device)
        for line, (i, s) in zip(table, sums.items(), strict=False):
            line[0] = i
            line[1:] = torch.stack([s.loss, s.right, s.margin])
        if accelerator.num_processes > 1:
            table = accelerator.gather(table)
        norm = norm.to(table).expand(len(table), 1)
        lines = sorted(line for line in torch.cat([table, norm], 1).tolist() if line[0] >= 0)
        if len(lines) != len(groups):
            raise RuntimeError(f"gathered {len(lines)} groups of {len(groups)}; ranks disagree.")
        for line in lines:
            if not math.isfinite(sum(line[1:4])):
                i = int(line[0])
                where = "" if step is None else f"step {step}: "
                called = groups[i].name or f"group {names[i] if names else i}"
                raise FloatingPointError(
                    f"{where}{called} has an answer whose log-probability is not finite (its loss "
                    f"is {line[1]}). The parameters were not updated. Look at its answers, or "
                    "lower the learning rate."
                )
        return GroupResult(
            loss=[line[1] for line in lines],
            right=[line[2] for line in lines],
            margin=[line[3] for line in lines],
            num_pairs=[group.num_pairs for group in groups],
            grad_norm=lines[0][4],
        )


def _passes(
    plan: Plan, known: Sequence[Tensor | None]
) -> Iterator[tuple[Part, Tensor | None, tuple[int, ...]]]:
    """Yield part, log-probabilities if they are known, and rows of each pass with gradient."""
    done = 0
    for part, values in zip(plan.parts, known, strict=True):
        for rows in part.passes:
            yield part, values, rows
            done += 1
    for _ in range(plan.num_passes - done):
        yield Part((), (_FILLER,), ((0,),)), None, (0,)
