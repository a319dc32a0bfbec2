"""The course of a training run: rows of metrics and evaluations, in memory and on disk."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selftrain._core.io import read_jsonl
from selftrain._core.logging import MetricLog
from selftrain.rl.dqn import DQN
from selftrain.rl.evaluate import Evaluation

_TRAIN, _EVALUATION = "train", "evaluation"
_METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class EvaluatedAt:
    """An evaluation in the course of training."""

    step: int
    """Steps of the environments before it."""
    evaluation: Evaluation
    """Its episodes."""


class Recorder:
    """Gathers what happens between two rows of metrics, and keeps the rows.

    Args:
        folder: Where ``metrics.jsonl`` goes; None: nowhere.
        agent: The agent that is trained; rows after its present step, left by a killed run, are
            dropped.
        num_envs: Number of environments.
        log_every: Steps between rows.
    """

    def __init__(self, folder: Path | None, agent: DQN, num_envs: int, log_every: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[EvaluatedAt] = []
        self.row_start = 0
        """The step of the latest row."""
        self._agent, self._num_envs, self._log_every = agent, num_envs, log_every
        self._logs: dict[str, MetricLog] = {}
        if folder is not None:
            self._open(folder / _METRICS)
        self.begin_segment()

    def begin_segment(self) -> None:
        """Forget the episodes that were cut off by a save."""
        self._returns = np.zeros(self._num_envs)
        self._lengths = np.zeros(self._num_envs, dtype=np.int64)
        self._begin_row()

    def step(self, rewards: NDArray, valid: NDArray, ended: NDArray) -> None:
        """Take one step of the environments: rewards as they are, and which episodes ended."""
        self._returns += np.where(valid, rewards, 0.0)
        self._lengths += valid
        if ended.any():
            self._finished += list(zip(self._returns[ended], self._lengths[ended], strict=True))
            self._returns[ended] = 0.0
            self._lengths[ended] = 0

    def learnt(self, metrics: dict[str, Tensor]) -> None:
        """Take what an update returned; nothing is read from the device."""
        loss = metrics["loss/total"]
        self._loss = loss if self._loss is None else self._loss + loss
        self._num_losses += 1
        self._last = metrics

    def row_due(self, steps: int) -> bool:
        """Return whether a row is due when the agent will have taken so many steps."""
        return steps // self._log_every > self.row_start // self._log_every

    def end_row(self) -> None:
        """Write a row of what happened since the last one."""
        agent, step = self._agent, self._agent.num_env_steps
        row: dict[str, Any] = {
            "num_updates": agent.num_updates,
            "epsilon": agent.epsilon,
            "num_episodes": len(self._finished),
        }
        if self._finished:
            returns, lengths = np.array(self._finished, dtype=np.float64).T
            row |= {"episode_return": returns.mean(), "episode_length": lengths.mean()}
        if self._loss is not None:
            row |= {name: value.item() for name, value in self._last.items()}
            row["loss/total"] = self._loss.item() / self._num_losses
        row["steps_per_second"] = (step - self.row_start) / (time.perf_counter() - self._row_time)
        self._keep(_TRAIN, step, row)
        self.rows.append({"step": step, **row})
        self._begin_row()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Take an evaluation of the agent as it is now."""
        step = self._agent.num_env_steps
        self.evaluations.append(EvaluatedAt(step, evaluation))
        row = {
            "mean_return": evaluation.mean,
            "returns": evaluation.returns.tolist(),
            "lengths": evaluation.lengths.tolist(),
        }
        self._keep(_EVALUATION, step, row)

    @property
    def note(self) -> str:
        """What a progress bar says: the latest mean return."""
        if self.evaluations:
            return f"return {self.evaluations[-1].evaluation.mean:.4g}"
        known = [row["episode_return"] for row in self.rows[-5:] if "episode_return" in row]
        return f"return {known[-1]:.4g}" if known else ""

    def _begin_row(self) -> None:
        self._finished: list[tuple[float, int]] = []
        self._loss: Tensor | None = None
        self._num_losses, self._last = 0, {}
        self.row_start, self._row_time = self._agent.num_env_steps, time.perf_counter()

    def _keep(self, stage: str, step: int, row: dict[str, Any]) -> None:
        if stage in self._logs:
            self._logs[stage].log(step, row)

    def _open(self, path: Path) -> None:
        """Open the file, and read what the run wrote up to where it was saved."""
        begin = self._agent.num_env_steps + 1 if self._agent.num_env_steps else 0
        self._logs = {s: MetricLog(path, stage=s, first_step=begin) for s in (_TRAIN, _EVALUATION)}
        for row in read_jsonl(path):
            stage = row.pop("stage")
            if stage == _TRAIN:
                self.rows.append(row)
            elif stage == _EVALUATION:
                found = Evaluation(np.array(row["returns"]), np.array(row["lengths"]))
                self.evaluations.append(EvaluatedAt(row["step"], found))
