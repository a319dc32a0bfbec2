"""DQN and the parts of Rainbow, with any value head (arXiv 1312.5602, 1710.02298, 2403.03950).

Shape letters: B batch, E environments, A actions, Z value bins, K stacked observations.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from selftrain._core.config import differences, to_dict
from selftrain._core.io import atomic_folder, read_json, recover_folder, write_json
from selftrain._core.rng import derive, seeded_torch, torch_generator
from selftrain.nn.ema import EMA
from selftrain.nn.q_network import QNetwork, value_head
from selftrain.ops.value_transforms import C51, ValueTransform
from selftrain.rl.bellman import bellman_loss
from selftrain.rl.config import DQNConfig
from selftrain.rl.networks import default_encoder
from selftrain.rl.replay import Batch, ReplayBuffer
from selftrain.rl.stacking import ObservationStack
from selftrain.training.checkpoint import load_checkpoint, save_checkpoint

_REPLAY, _SETTINGS = "replay.safetensors", "settings.json"
_LEAST_PRIORITY = 1e-6


class DQN:
    """A value agent: a Q-network, its target network, a replay and an optimizer.

    The head is an argument: None regresses, ``HLGauss``, ``TwoHot`` and ``C51`` classify. All else
    is the same for all heads, which is how "Stop Regressing" compares them. Each method is one step
    of the algorithm: :meth:`act`, :meth:`observe`, :meth:`learn`; :func:`train` composes them.

    Randomness is a function of the seed and of counters, which :meth:`save` writes with all else.

    Args:
        observation_space: Of a single environment: a ``Box``.
        action_space: Of a single environment: ``Discrete``.
        config: The settings.
        head: How values become probabilities; None for a scalar head.
        encoder: A module with ``num_features`` that turns ``[B, *observation]``, or ``[B, K,
            *observation]`` with ``stack`` above 1, into features. None chooses one that fits the
            observations.
        device: Of networks and replay; None: the CPU.
        seed: Of weights, exploration and batches.

    Raises:
        TypeError: If a space or argument is of another kind.
        ValueError: If no encoder fits the observations.

    Example:
        >>> env = gymnasium.make_vec("CartPole-v1", num_envs=4)
        >>> agent = DQN(env.single_observation_space, env.single_action_space)
        >>> observations, _ = env.reset(seed=0)
        >>> agent.act(observations).shape
        (4,)
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        config: DQNConfig | None = None,
        *,
        head: ValueTransform | None = None,
        encoder: nn.Module | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        self.config = DQNConfig() if config is None else config
        self.device = torch.device(device or "cpu")
        self.seed, self.transform = seed, head
        self._space, self._num_actions = _checked(observation_space, action_space)
        with seeded_torch(seed, "weights"):
            if encoder is None:
                encoder = default_encoder(self._space, stack=self.config.stack)
            make_head = value_head(head, huber_delta=None if head else self.config.huber_delta)
            self.network = QNetwork(
                encoder, self._num_actions, make_head, dueling=self.config.dueling
            ).to(self.device)
        self.target = _target_of(self.network, self.config)
        self.optimizer = _adam(self.network, self.config)
        self.replay: ReplayBuffer | None = None
        """Transitions; made with the first ones, when the number of environments is known."""
        self._stack: ObservationStack | None = None
        self.num_env_steps = 0
        """Transitions observed so far."""
        self.num_updates = 0
        """Calls of :meth:`learn` so far."""
        self._num_acts = 0

    @property
    def epsilon(self) -> float:
        """The share of random actions at this step."""
        return self.config.epsilon_at(self.num_env_steps)

    @property
    def updates_due(self) -> int:
        """How many calls of :meth:`learn` the settings ask for at this step."""
        return max(0, self.config.updates_at(self.num_env_steps) - self.num_updates)

    def act(self, observations: NDArray, *, greedy: bool = False) -> NDArray[np.int64]:
        """Return an action for each environment, ``[E]``; the best one, or random by epsilon.

        Args:
            observations: The latest, ``[E, *observation]``, without the earlier ones of a stack.
            greedy: Always take the best.
        """
        stacked = self._stack_for(observations).with_latest(observations)
        epsilon = 0.0 if greedy else self.epsilon
        rng = torch_generator(self.seed, "act", self._num_acts)
        self._num_acts += 1
        return self.choose(stacked, epsilon=epsilon, rng=rng)

    @torch.inference_mode()
    def choose(
        self, observations: NDArray, *, epsilon: float, rng: torch.Generator
    ) -> NDArray[np.int64]:
        """Return an action for each row of stacked observations, ``[E]``; changes nothing.

        Args:
            observations: As the network takes them, ``[E, *observation]`` or ``[E, K, ...]``.
            epsilon: Share of random actions.
            rng: Of the random actions; on the CPU.
        """
        draws = torch.rand(2, len(observations), generator=rng).numpy()
        random = (draws[1] * self._num_actions).astype(np.int64)
        if epsilon >= 1.0:
            return random
        values_EA = self.values(self._tensor(observations).to(self.device))
        best = values_EA.argmax(-1).cpu().numpy()
        return np.where(draws[0] < epsilon, random, best)

    def values(self, observations: Tensor) -> Float[Tensor, "batch actions"]:
        """Return the values of all actions for observations as the network takes them."""
        return self.network.value(self.network(observations))

    def observe(
        self,
        observations: NDArray,
        actions: NDArray,
        rewards: NDArray,
        terminated: NDArray,
        truncated: NDArray,
        valid: NDArray | None = None,
    ) -> None:
        """Store one step of all environments.

        Args:
            observations: Before the actions, ``[E, *observation]``.
            actions: Those of :meth:`act`, ``[E]``.
            rewards: What they gave; clipped here if the settings say so.
            terminated: Whether the episode came to its end, after which nothing is worth anything.
            truncated: Whether it was cut off, where the value of the last observation counts on.
            valid: False for the step that a vector environment spends on its reset, whose
                observation is the last of the episode before; None: all are valid.
        """
        stack = self._stack_for(observations)
        valid = np.ones(len(observations), dtype=bool) if valid is None else valid
        stack.push(observations, terminated | truncated | ~valid)
        if self.config.reward_clip is not None:
            rewards = np.clip(rewards, -self.config.reward_clip, self.config.reward_clip)
        if self.replay is None:
            self.replay = self._make_replay(len(observations))
        self.replay.add(
            self._tensor(observations),
            torch.as_tensor(actions),
            torch.as_tensor(rewards, dtype=torch.float32),
            torch.as_tensor(terminated),
            torch.as_tensor(truncated),
            valid=torch.as_tensor(valid),
        )
        self.num_env_steps += int(valid.sum())

    def learn(self, *, measure: bool = False) -> dict[str, Tensor]:
        """Draw a batch, take one optimizer step and move the target network.

        Args:
            measure: Compute more than the loss.

        Returns:
            Scalars that stay on the device: ``loss/total``, and with ``measure`` the mean value,
            the mean target and what the head measures.

        Raises:
            ValueError: If nothing has been observed.
        """
        if self.replay is None:
            raise ValueError("there is nothing to learn from; call observe first.")
        config = self.config
        rng = torch.Generator(self.device).manual_seed(derive(self.seed, "batch", self.num_updates))
        batch = self.replay.sample(
            config.batch_size,
            num_steps=config.num_steps,
            discount=config.discount,
            importance_exponent=config.importance_exponent,
            rng=rng,
        )
        losses = self.losses(batch)
        total = (losses["td"] * batch.weights).mean()
        self.optimizer.zero_grad()
        total.backward()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.target.update()
        self.num_updates += 1
        if config.priority_exponent is not None:
            self.replay.update_priorities(batch.indices, self._priorities(losses))
        metrics = {"loss/total": total.detach()}
        if measure:
            metrics["value/target"] = losses["targets"].mean()
            found = self.network.head.measure(losses["logits"].detach(), losses["targets"])
            metrics |= {f"value/{name}": value for name, value in found.items()}
        return metrics

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        r"""Return the loss of each transition before its weight, and what it was made of.

        .. math:: y = R + \gamma^n Q'(s', a^*), \qquad a^* = \arg\max_a Q(s', a)

        with Q' the target network and Q the online network for ``double`` (arXiv 1509.06461), else
        Q' too. A C51 head gets the moved distribution of Q' instead of its mean.

        Returns:
            ``td``, the losses ``[B]``; ``targets``, the values y ``[B]``; ``logits`` of the actions
            that were done ``[B, Z]``. A gradient flows to the online network's logits only.
        """
        network, target = self.network, self.target.model
        logits_BZ = network.head.select(network(batch.observations), batch.actions)
        with torch.no_grad():
            next_logits_BAZ = target(batch.next_observations)
            if self.config.double:
                chooser_BA = self.values(batch.next_observations)
            else:
                chooser_BA = network.value(next_logits_BAZ)
            next_logits_BZ = network.head.select(next_logits_BAZ, chooser_BA.argmax(-1))
        td_B, targets_B = bellman_loss(
            network.head, logits_BZ, next_logits_BZ, batch.returns, batch.discounts
        )
        return {"td": td_B, "targets": targets_B, "logits": logits_BZ}

    def save(self, folder: str | Path) -> None:
        """Write all that the agent is to ``folder``, atomically.

        Networks, optimizer, replay and counters. Not the observations that running episodes are
        stacked from: begin with a reset after loading, as :func:`train` does.
        """
        counters = {"num_env_steps": self.num_env_steps, "num_acts": self._num_acts}
        with atomic_folder(folder) as part:
            write_json(part / _SETTINGS, self.settings())
            save_checkpoint(part, self.num_updates, self._modules(), self.optimizer, extra=counters)
            if self.replay is not None:
                self.replay.save(part / _REPLAY)

    def load(self, folder: str | Path) -> None:
        """Continue from what :meth:`save` wrote, in an agent made with the same arguments.

        Raises:
            FileNotFoundError: If there is nothing.
            ValueError: If it was saved by an agent with other settings, or is damaged.
        """
        folder = Path(folder)
        recover_folder(folder)
        if not (folder / _SETTINGS).exists():
            raise FileNotFoundError(f"{folder} holds no agent; give a folder that save wrote.")
        changed = differences(read_json(folder / _SETTINGS), self.settings())
        if changed:
            raise ValueError(
                f"{folder} holds an agent with other settings:\n  " + "\n  ".join(changed)
            )
        saved = load_checkpoint(folder, self._modules(), self.optimizer)
        if saved is None:
            raise ValueError(f"{folder} has settings but no weights; delete it to begin again.")
        self.replay = None
        if (folder / _REPLAY).exists():
            self.replay = ReplayBuffer.load(folder / _REPLAY, device=self.device)
        self._stack = None
        self.num_updates = self.target.num_updates = saved.step
        self.num_env_steps = saved.extra["num_env_steps"]
        self._num_acts = saved.extra["num_acts"]

    def settings(self) -> dict[str, Any]:
        """Return what makes this agent another one than others, as plain data."""
        return {"config": to_dict(self.config), "head": repr(self.transform), "seed": self.seed}

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"network": self.network, "target": self.target.model})

    def _stack_for(self, observations: NDArray) -> ObservationStack:
        """Return the stack of the training environments, begun with their first observations."""
        num_envs, *shape = observations.shape
        if tuple(shape) != self._space.shape:
            raise ValueError(
                f"observations must have shape [environments, "
                f"{', '.join(map(str, self._space.shape))}], got {observations.shape}."
            )
        if self._stack is None:
            self._stack = ObservationStack(
                num_envs, self._space.shape, self._space.dtype, stack=self.config.stack
            )
        return self._stack

    def _make_replay(self, num_envs: int) -> ReplayBuffer:
        return ReplayBuffer(
            self._space.shape,
            capacity=self.config.capacity,
            num_envs=num_envs,
            dtype=_stored_as(self._space),
            stack=self.config.stack,
            priority_exponent=self.config.priority_exponent,
            device=self.device,
        )

    def _tensor(self, observations: NDArray) -> Tensor:
        return torch.as_tensor(observations, dtype=_stored_as(self._space))

    def _priorities(self, losses: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """Return how wrong each value was; for C51 its loss, as in Rainbow.

        The cross entropy of a blurred target does not fall to 0, so that as a priority it would
        hardly tell what is known from what is not.
        """
        if isinstance(self.transform, C51):
            return losses["td"].detach()
        values_B = self.network.head.value(losses["logits"].detach())
        # A value that is right by chance must be drawn again some day.
        return (values_B - losses["targets"]).abs() + _LEAST_PRIORITY


def _checked(
    observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> tuple[gymnasium.spaces.Box, int]:
    if not isinstance(observation_space, gymnasium.spaces.Box):
        raise TypeError(
            f"observation_space must be a Box, got {observation_space}; wrap the environment in "
            "gymnasium.wrappers.FlattenObservation, and pass the space of a single environment."
        )
    if not isinstance(action_space, gymnasium.spaces.Discrete) or action_space.start != 0:
        raise TypeError(
            f"action_space must be Discrete(n) that starts at 0, got {action_space}; pass the "
            "space of a single environment."
        )
    return observation_space, int(action_space.n)


def _stored_as(space: gymnasium.spaces.Box) -> torch.dtype:
    """Return the type in which observations are kept: bytes as they are, others in float32."""
    return torch.uint8 if space.dtype == np.uint8 else torch.float32


def _target_of(network: nn.Module, config: DQNConfig) -> EMA:
    if config.target_decay is None:
        return EMA(network, 0.0, update_every=config.target_every or 1)
    return EMA(network, config.target_decay)


def _adam(network: nn.Module, config: DQNConfig) -> torch.optim.AdamW:
    """Return Adam, with decay of all but vectors where that is asked for."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim != 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        eps=config.adam_eps,
        fused=True,  # one pass over all parameters
    )
