"""Replay of experience: frames stored once, stacks and n-step returns made when drawn.

Shape letters: B batch, E environments, K window, S stacked frames.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selftrain._core.checks import check_int, check_not_empty, check_range
from selftrain._core.io import save_tensors
from selftrain.rl._ring import BORDER, TERMINATED, TRUNCATED, Ring
from selftrain.rl.batch import Batch, gather_batch
from selftrain.rl.episodes import Episode
from selftrain.rl.priorities import Priorities

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {str(t).removeprefix("torch."): t for t in (*_INTEGERS, *_FLOATS)}


class ReplayBuffer:
    """The last steps of one or more environments, to draw batches of n-step transitions from.

    Every frame is stored once. Stacks of frames are put together when they are drawn, with zeros
    before the episode's start, and never mix episodes. An n-step return ends with its episode: at a
    terminal without what follows, at a truncation with the value of the last observation, provided
    that it was stored (see :meth:`add`); if not, the steps from which it would be needed are not
    drawn. Neither are steps whose next ``num_steps`` or ``window`` are not known yet.

    Drawing is stratified, in proportion to the priorities, all equal without
    ``priority_exponent`` (arXiv 1511.05952, section 3.3 and appendix B.2.1). New steps get the
    largest priority so far. On a GPU neither drawing nor :meth:`update_priorities` waits for it.

    Args:
        observation_shape: Of one frame, without the axis of stacked ones.
        capacity: Number of steps kept, of all environments together; rounded down to a multiple of
            ``num_envs``. Memory is taken as it fills (on CPUs).
        num_envs: E; every call of :meth:`add` brings a step of each.
        dtype: Of the observations.
        stack: S; 1 for single frames, without an axis for them.
        priority_exponent: Power of the priorities, at least 0; None for uniform drawing, which
            saves 4 bytes a step.
        device: Where everything is kept.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is of another kind.

    Example:
        >>> buffer = ReplayBuffer((2,), capacity=100, dtype=torch.float32)
        >>> for step in range(5):
        ...     buffer.add([[step, 0.0]], [step], [1.0], [step == 4], [False])
        >>> batch = buffer.sample(2, num_steps=3, rng=torch.Generator().manual_seed(0))
        >>> batch.returns.shape, len(buffer)
        (torch.Size([2]), 5)
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        *,
        capacity: int,
        num_envs: int = 1,
        dtype: torch.dtype = torch.uint8,
        stack: int = 1,
        priority_exponent: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_int("num_envs", num_envs, low=1)
        check_int("stack", stack, low=1)
        check_int("capacity", capacity, low=num_envs * (stack + 1))
        if dtype not in _DTYPES.values():
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype}.")
        if priority_exponent is not None:
            check_range("priority_exponent", priority_exponent, low=0.0, high=10.0)
        self.observation_shape = tuple(observation_shape)
        self.capacity, self.num_envs, self.stack = capacity, num_envs, stack
        self.dtype, self.priority_exponent = dtype, priority_exponent
        self.device = torch.device(device)
        self._ring = Ring(
            self.observation_shape,
            num_rows=capacity // num_envs,
            num_envs=num_envs,
            dtype=dtype,
            device=self.device,
        )
        self._priorities = Priorities(self._ring, stack=stack, exponent=priority_exponent)

    def __len__(self) -> int:
        """Return the number of stored steps, borders included."""
        return (self._ring.end - self._ring.start) * self.num_envs

    @property
    def num_added(self) -> int:
        """The number of steps ever added, borders included."""
        return self._ring.end * self.num_envs

    @property
    def num_bytes(self) -> int:
        """Memory of a full buffer, all of it."""
        return self._ring.num_bytes + self._priorities.num_bytes

    def add(
        self,
        observations: Tensor | ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        *,
        valid: ArrayLike | None = None,
    ) -> None:
        """Store one step of every environment; the observation is the one before the action.

        After the end of an episode Gymnasium's ``NEXT_STEP`` autoreset makes a step that does
        nothing. Pass it with ``valid`` False: its observation is kept as the episode's last one, a
        *border*, so that a truncated episode can be completed by its value. The same way an episode
        is broken off: a border after a step that did not end counts as its truncation. Without
        borders the first step after an end is the first of the next episode.

        Args:
            observations: ``[E, *shape]``.
            actions: ``[E]``, integers.
            rewards: ``[E]``, numbers.
            terminated: ``[E]``, whether the action led to a terminal state.
            truncated: ``[E]``, whether the episode was broken off after the action.
            valid: ``[E]``, False for borders; None if all are steps.

        Raises:
            ValueError: If a shape is wrong or a reward is not finite.
            TypeError: If the observations are of another type than the buffer's.
        """
        frames = self._checked_frames(observations)
        row = {
            "actions": np.asarray(actions),
            "rewards": np.asarray(rewards),
            "terminated": np.asarray(terminated, dtype=bool),
            "truncated": np.asarray(truncated, dtype=bool),
            "valid": np.ones(self.num_envs, bool) if valid is None else np.asarray(valid, bool),
        }
        for name, array in row.items():
            if array.shape != (self.num_envs,):
                raise ValueError(f"{name} must be [{self.num_envs}], got {list(array.shape)}.")
        _check_integers(row["actions"])
        if not np.isfinite(row["rewards"]).all():
            raise ValueError(f"rewards must be finite, got {row['rewards'].tolist()}.")
        border, last = ~row["valid"], self._ring.last_flags
        flags = np.where(row["terminated"], TERMINATED, 0) | np.where(
            row["truncated"], TRUNCATED, 0
        )
        flags = np.where(border, BORDER, flags).astype(np.uint8)
        running = (last == 0) & (self._ring.last_ages >= 0)
        if (border & running).any():
            self._ring.truncate(border & running)
        goes_on = running | (border & (last != 0) & (last != BORDER))
        ages = np.where(goes_on, self._ring.last_ages + 1, 0).astype(np.int32)
        self._append(
            frames[None], row["actions"][None], row["rewards"][None], flags[None], ages[None]
        )

    def append_episodes(self, episodes: Iterable[Episode]) -> None:
        """Store whole episodes behind what is there, each with its last observation as a border.

        A step that :meth:`add` stored last without an end counts as truncated.

        Raises:
            ValueError: If the buffer is of several environments, or an episode does not fit it.
            TypeError: If the observations are of another type than the buffer's.
        """
        if self.num_envs != 1:
            raise ValueError(
                f"episodes can be appended to a buffer of one environment, not of {self.num_envs}; "
                "make it with num_envs=1."
            )
        for episode in episodes:
            num = len(episode) + 1
            if num > self._ring.num_rows:
                raise ValueError(
                    f"an episode of {num} observations does not fit a capacity of {self.capacity}."
                )
            if self._ring.last_flags[0] == 0 and self._ring.end:
                self._ring.truncate(np.ones(1, dtype=bool))
            frames = self._checked_frames(episode.observations, num)
            flags = np.zeros((num, 1), dtype=np.uint8)
            flags[-2:, 0] = TERMINATED if episode.terminated else TRUNCATED, BORDER
            self._append(
                frames[:, None],
                np.append(episode.actions, -1)[:, None],
                np.append(episode.rewards, 0.0)[:, None],
                flags,
                np.arange(num, dtype=np.int32)[:, None],
            )

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Episode],
        *,
        stack: int = 1,
        dtype: torch.dtype | None = None,
        priority_exponent: float | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Return a buffer that holds just these episodes.

        Args:
            episodes: What to store.
            stack: As in the class.
            dtype: Of the observations; None for that of the first episode.
            priority_exponent: As in the class.
            device: Likewise.

        Raises:
            ValueError: If there are none or they differ in the shape of their observations.
        """
        episodes = list(episodes)
        check_not_empty("episodes", episodes)
        first = torch.as_tensor(episodes[0].observations)
        buffer = cls(
            tuple(first.shape[1:]),
            capacity=max(sum(len(e) + 1 for e in episodes), stack + 1),
            dtype=dtype or first.dtype,
            stack=stack,
            priority_exponent=priority_exponent,
            device=device,
        )
        buffer.append_episodes(episodes)
        return buffer

    def sample(
        self,
        batch_size: int,
        *,
        num_steps: int = 1,
        discount: float = 0.99,
        importance_exponent: float = 1.0,
        window: int = 0,
        rng: torch.Generator | None = None,
    ) -> Batch:
        """Draw steps and make n-step transitions of them.

        ``discount`` may change with every call at no cost; a new ``num_steps`` or ``window`` costs
        a look at all stored steps: let them change now and then, not from batch to batch.

        Args:
            batch_size: B; the same step may be drawn twice.
            num_steps: n, the number of rewards in a return.
            discount: In [0, 1].
            importance_exponent: Power of the importance weights (beta); 1 undoes the priorities.
            window: K, the number of following steps to return as well.
            rng: Random source, on the buffer's device or a CPU; None for torch's own.

        Raises:
            ValueError: If an argument is out of range or no step can be drawn (on GPUs seen in the
                first call only).
        """
        check_int("batch_size", batch_size, low=1)
        check_int("num_steps", num_steps, low=1)
        check_int("window", window, low=0)
        check_range("importance_exponent", importance_exponent, low=0.0)
        self._priorities.settle(num_steps, window)
        indices, weights = self._priorities.draw(batch_size, importance_exponent, rng)
        return gather_batch(
            self._ring,
            indices,
            weights,
            stack=self.stack,
            num_steps=num_steps,
            discount=discount,
            window=window,
        )

    def update_priorities(self, indices: Tensor, priorities: Tensor) -> None:
        """Set the priorities of drawn steps, as a rule to their losses or errors.

        Steps that were overwritten since are passed over; of several priorities for one step the
        last counts. A step of priority 0 is not drawn.

        Args:
            indices: ``[B]``, of a :class:`Batch`.
            priorities: ``[B]``, not negative, before the exponent.

        Raises:
            ValueError: If the buffer draws uniformly, the shapes differ, or a priority is negative
                or not finite (the values are looked at on CPUs only; elsewhere NaN and negative
                ones count as 0).
        """
        if self.priority_exponent is None:
            raise ValueError("the buffer draws uniformly; make it with priority_exponent=0.5, say.")
        if indices.ndim != 1 or indices.shape != priorities.shape:
            raise ValueError(
                f"indices and priorities must be [batch], got {list(indices.shape)} and "
                f"{list(priorities.shape)}."
            )
        if len(indices):
            self._priorities.update(indices.to(self.device), priorities.detach().to(self.device))

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything stored, by name; the frames are not copied."""
        return {
            **self._ring.tensors(),
            **self._priorities.tensors(),
            "num_rows": torch.tensor(self._ring.end),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what :meth:`state_dict` returned, of a buffer made with the same arguments.

        Raises:
            ValueError: If it is of another buffer; nothing is changed then.
        """
        own, end = self.state_dict(), int(state.get("num_rows", torch.tensor(-1)))
        filled = min(end, self._ring.num_rows) * self.num_envs
        for name in sorted(own.keys() | state.keys()):
            kinds = [
                (t.dtype, t.ndim, list(t.shape[1:])) if t is not None else None
                for t in (own.get(name), state.get(name))
            ]
            if kinds[0] != kinds[1] or (state[name].ndim and len(state[name]) != filled):
                raise ValueError(
                    f"the state is of another buffer: it differs in {name!r}. Make the buffer with "
                    "the arguments of the one that was saved."
                )
        self._ring.end = end
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
        self._ring.restore_last()
        self._priorities.forget()

    def save(self, path: str | Path) -> None:
        """Write the filled part to one safetensors file, atomically.

        Raises:
            OSError: If it cannot be written; what was there before is unchanged.
        """
        arguments = {
            "observation_shape": self.observation_shape,
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "dtype": str(self.dtype).removeprefix("torch."),
            "stack": self.stack,
            "priority_exponent": self.priority_exponent,
        }
        save_tensors(path, self.state_dict(), metadata={"replay": json.dumps(arguments)})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Return the buffer that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or holds something else.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                if "replay" not in (file.metadata() or {}):
                    raise ValueError(
                        f"{path} holds no replay buffer; ReplayBuffer.save writes one."
                    )
                arguments: dict[str, Any] = json.loads(file.metadata()["replay"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole file of a buffer ({error}).") from error
        shape = tuple(arguments.pop("observation_shape"))
        dtype = _DTYPES[arguments.pop("dtype")]
        buffer = cls(shape, dtype=dtype, device=device, **arguments)
        buffer.load_state_dict(state)
        return buffer

    def _checked_frames(self, observations: Tensor | ArrayLike, num: int | None = None) -> Tensor:
        """Return observations as a tensor of the buffer's type, ``[num, *shape]``."""
        if not isinstance(observations, Tensor):
            # torch warns of what it cannot write.
            observations = np.require(observations, requirements=["C", "W"])
        frames = torch.as_tensor(observations)
        if frames.dtype != self.dtype and not (
            frames.is_floating_point() and self.dtype.is_floating_point
        ):
            raise TypeError(
                f"observations are {frames.dtype}, the buffer stores {self.dtype}. Convert them "
                f"or make the buffer with dtype={frames.dtype}."
            )
        shape = (num or self.num_envs, *self.observation_shape)
        if tuple(frames.shape) != shape:
            raise ValueError(
                f"observations must be {list(shape)}, got {list(frames.shape)}. Give the "
                f"newest frame only, without stacking: that is done when drawing."
            )
        return frames

    def _append(
        self,
        frames: Tensor,
        actions: np.ndarray,
        rewards: np.ndarray,
        flags: np.ndarray,
        ages: np.ndarray,
    ) -> None:
        first = self._ring.end
        self._ring.append(frames, actions, rewards, flags, ages)
        self._priorities.added(first)


def _check_integers(actions: np.ndarray) -> None:
    if not np.issubdtype(actions.dtype, np.integer):
        raise TypeError(f"actions must be integers, got {actions.dtype}.")
