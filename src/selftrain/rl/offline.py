"""Conservative Q-learning on logged data, with any value head (arXiv 2006.04779, 2403.03950).

Shape letters: B batch, E environments, A actions, Z value bins.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor, nn

from selftrain._core.io import read_jsonl
from selftrain._core.logging import MetricLog, progress
from selftrain._core.rng import torch_generator
from selftrain._core.run import open_run
from selftrain.errors import RunConflictError
from selftrain.nn.q_network import QNetwork
from selftrain.ops.conservative import conservative_penalty
from selftrain.rl.batch import Batch
from selftrain.rl.bellman import bellman_loss, greedy_actions
from selftrain.rl.episodes import Episode
from selftrain.rl.offline_config import CQLConfig
from selftrain.rl.replay import ReplayBuffer
from selftrain.training.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["CQL"]


class CQL:
    r"""Learns action values from logged data, and stays near the actions that are in it.

    .. math:: L = c\,\mathrm{loss}(Q(s, a), y)
                  + \alpha\,\Big(\log \sum_{a'} \exp Q(s, a') - Q(s, a)\Big)

    The first loss is that of the network's head (squared error, or cross entropy of a categorical
    head), the Q of the penalty is its readout.

    Args:
        network: The network to train, in place.
        config: The settings.
        legal: Maps observations ``[B, ...]`` to the actions there are, bool ``[B, A]``; the others
            are neither chosen nor counted. None for all actions everywhere.

    Example:
        >>> from selftrain.nn import MLPEncoder, QNetwork, value_head
        >>> from selftrain.ops import HLGauss, Support
        >>> head = value_head(HLGauss(Support(0.0, 1.0, 51)))
        >>> learner = CQL(QNetwork(MLPEncoder(4), 2, head), CQLConfig(target="sarsa"))
        >>> learner.choose(np.zeros((3, 4), np.float32)).shape
        (3,)
    """

    def __init__(
        self,
        network: QNetwork,
        config: CQLConfig = CQLConfig(),  # noqa: B008 - frozen
        *,
        legal: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.network, self.config, self._legal = network, config, legal
        self.target_network = copy.deepcopy(network).requires_grad_(False)
        """What is bootstrapped from: a copy made every ``target_every`` updates."""
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, eps=config.adam_eps
        )
        self.num_updates = 0
        """Updates so far."""

    @torch.no_grad()
    def choose(
        self,
        observations: np.ndarray,
        *,
        epsilon: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> np.ndarray:
        """Return an action for each observation, ``[E]``: the best one, or a random legal one.

        Args:
            observations: As the network takes them, ``[E, ...]``.
            epsilon: Share of random actions.
            rng: Of the random actions, on the CPU; None for torch's own.
        """
        batch = torch.as_tensor(observations, device=self._device)
        values_EA = self.network.value(self.network(batch))
        legal_EA = self._legal_in(batch)
        if epsilon > 0:
            draws_EA = torch.rand(values_EA.shape, generator=rng).to(values_EA)
            explores_E = torch.rand(len(values_EA), generator=rng).to(self._device) < epsilon
            values_EA = torch.where(explores_E[:, None], draws_EA, values_EA)
        return greedy_actions(values_EA, legal_EA).cpu().numpy()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of each transition, ``[B]``, before their factors.

        "td" is that against the target, "penalty" the conservative one; "targets" are the values
        trained towards. With target "sarsa", a transition whose next action is not in the log (the
        last before a truncation) has a "td" of 0.
        """
        logits_BAZ = self.network(batch.observations)
        logits_BZ = self.network.head.select(logits_BAZ, batch.actions)
        td_B, targets_B = self._td(logits_BZ, batch)
        penalty_B = conservative_penalty(
            self.network.value(logits_BAZ), batch.actions, legal=self._legal_in(batch.observations)
        )
        return {"td": td_B, "penalty": penalty_B, "targets": targets_B}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update; return the mean losses as tensors that stay on the device."""
        config, batch = self.config, _on(self._device, batch)
        losses = self.losses(batch)
        total_B = config.td_coef * losses["td"] + config.alpha * losses["penalty"]
        total = (batch.weights * total_B).mean()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.num_updates += 1
        if self.num_updates % config.target_every == 0:
            self.target_network.load_state_dict(self.network.state_dict())
        means = {f"loss/{name}": losses[name].detach().mean() for name in ("td", "penalty")}
        return {"loss/total": total.detach(), **means}

    @torch.no_grad()
    def measure(self, batch: Batch) -> dict[str, float]:
        """Return means over a batch to log: losses, values, and what the head measures.

        "value/data" is the value of the actions in the data, "value/greedy" that of the best ones:
        far apart, the values of actions that are not in the data have run away.
        """
        batch = _on(self._device, batch)
        losses = self.losses(batch)
        logits_BAZ = self.network(batch.observations)
        logits_BZ = self.network.head.select(logits_BAZ, batch.actions)
        best_B = self._best(logits_BAZ, batch.observations)
        greedy_BZ = self.network.head.select(logits_BAZ, best_B)
        measured = {
            "loss/td": losses["td"].mean(),
            "loss/penalty": losses["penalty"].mean(),
            "value/data": self.network.head.value(logits_BZ).mean(),
            "value/greedy": self.network.head.value(greedy_BZ).mean(),
            "agreement": (best_B == batch.actions).float().mean(),
        }
        head = self.network.head.measure(logits_BZ, losses["targets"])
        measured |= {f"target/{name}": value for name, value in head.items()}
        return {name: float(value) for name, value in measured.items()}

    def fit(
        self,
        data: ReplayBuffer | Sequence[Episode],
        *,
        evaluate: Callable[["CQL"], dict[str, float]] | None = None,
        output_dir: str | Path | None = None,
        show_progress: bool = False,
    ) -> list[dict[str, float]]:
        """Make the updates that are left of ``config.num_updates``.

        Args:
            data: Logged episodes, or a replay of transitions. monte_carlo needs the episodes.
            evaluate: Called every ``eval_every`` updates and after the last; what it returns is
                logged beside the other metrics.
            output_dir: Where config, metrics and checkpoints go, and from where an interrupted run
                goes on, to the same weights as one that was not. None keeps nothing.
            show_progress: Show a bar.

        Returns:
            The rows of metrics, each with its "step".

        Raises:
            ValueError: If there are no data, or a replay is given for monte_carlo.
            RunConflictError: If the folder holds a run with other settings or other data.
        """
        replay = self._replay(data)
        log = self._open(output_dir, len(replay))
        rows: list[dict[str, float]] = []
        config, first = self.config, self.num_updates
        with progress("cql", config.num_updates, done=first, show=show_progress) as bar:
            for step in range(first + 1, config.num_updates + 1):
                batch = self._sample(replay, step)
                self.step(batch)
                last = step == config.num_updates
                due = evaluate is not None and (last or step % config.eval_every == 0)
                if due or last or step % config.log_every == 0:
                    row = self.measure(batch) | (evaluate(self) if due and evaluate else {})
                    rows.append({"step": step, **row})
                    if log is not None:
                        log.log(step, row)
                    bar.update(step, f"td {row['loss/td']:.3g}")
                if output_dir is not None and (last or step % config.save_every == 0):
                    self._save(output_dir, len(replay))
        return rows if log is None else read_jsonl(log.path)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _legal_in(self, observations: Tensor) -> Tensor | None:
        if self._legal is None:
            return None
        legal_BA = self._legal(observations)
        # Where nothing is legal the episode has ended: any action will do, its value counts 0.
        return legal_BA | ~legal_BA.any(-1, keepdim=True)

    def _best(self, logits_BAZ: Tensor, observations: Tensor) -> Tensor:
        return greedy_actions(self.network.value(logits_BAZ), self._legal_in(observations))

    def _td(self, logits_BZ: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss against the target and the target, both ``[B]``."""
        head = self.network.head
        if self.config.target == "monte_carlo":  # the returns of the data are those to the end
            return head.loss(logits_BZ, batch.returns), batch.returns
        with torch.no_grad():
            next_BAZ = self.target_network(batch.next_observations)
            if self.config.target == "sarsa":
                known_B = (batch.next_actions >= 0) | (batch.discounts == 0)
                actions_B = batch.next_actions.clamp(min=0)
            else:
                known_B = None
                chooser_BAZ = (
                    self.network(batch.next_observations) if self.config.double else next_BAZ
                )
                actions_B = self._best(chooser_BAZ, batch.next_observations)
            next_BZ = head.select(next_BAZ, actions_B)
        loss_B, targets_B = bellman_loss(head, logits_BZ, next_BZ, batch.returns, batch.discounts)
        return (loss_B if known_B is None else loss_B * known_B), targets_B

    def _replay(self, data: ReplayBuffer | Sequence[Episode]) -> ReplayBuffer:
        monte_carlo = self.config.target == "monte_carlo"
        if isinstance(data, ReplayBuffer):
            if monte_carlo:
                raise ValueError(
                    "data must be episodes with target='monte_carlo': a replay does not hold the "
                    "rewards to their ends."
                )
            return data
        if len(data) == 0:
            raise ValueError("data is empty; at least one episode is needed.")
        if monte_carlo:
            data = [_with_returns_to_go(episode, self.config.discount) for episode in data]
        return ReplayBuffer.from_episodes(data, stack=self.config.stack)

    def _sample(self, replay: ReplayBuffer, step: int) -> Batch:
        # A source of its own for each update: nothing to save for going on where a run stopped.
        return replay.sample(
            self.config.batch_size,
            num_steps=self.config.num_steps,
            discount=self.config.discount,
            rng=torch_generator(self.config.seed, "cql", step),
        )

    def _open(self, output_dir: str | Path | None, num_transitions: int) -> MetricLog | None:
        """Begin or continue the run in a folder."""
        if output_dir is None:
            return None
        open_run(output_dir, self.config, seed=self.config.seed)
        found = load_checkpoint(output_dir, self._modules(), self.optimizer)
        if found is not None:
            if found.extra["num_transitions"] != num_transitions:
                raise RunConflictError(
                    f"{output_dir} holds a run on {found.extra['num_transitions']} transitions, "
                    f"and data has {num_transitions}. Give the same data to continue it, or choose "
                    "another folder."
                )
            self.num_updates = found.step
        path = Path(output_dir) / "metrics.jsonl"
        return MetricLog(path, stage="cql", first_step=self.num_updates + 1)

    def _save(self, output_dir: str | Path, num_transitions: int) -> None:
        extra = {"num_transitions": num_transitions}
        save_checkpoint(output_dir, self.num_updates, self._modules(), self.optimizer, extra)

    def _modules(self) -> nn.Module:
        return nn.ModuleDict({"network": self.network, "target": self.target_network})


def _with_returns_to_go(episode: Episode, discount: float) -> Episode:
    """Return the episode with the discounted sum of all rewards from a step on as its reward."""
    rewards = np.asarray(episode.rewards, np.float64)
    returns = np.asarray(lfilter([1.0], [1.0, -discount], rewards[::-1]))[::-1]
    return replace(episode, rewards=returns.astype(np.float32))


def _on(device: torch.device, batch: Batch) -> Batch:
    """Return the batch on a device."""
    if batch.observations.device == device:
        return batch
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "window"}
    return Batch(**{name: tensor.to(device) for name, tensor in tensors.items()})
