"""Logged episodes: one at a time as arrays, many of them in a file."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from selftrain._core.checks import check_not_empty
from selftrain._core.io import save_tensors

_FIELDS = ("observations", "actions", "rewards", "lengths", "terminated", "truncated")


@dataclass(frozen=True, slots=True)
class Episode:
    """What happened from a reset to the end: T steps between T + 1 observations.

    Neither terminated nor truncated means that the record stops there; it is used like a truncated
    one.

    Raises:
        ValueError: If the lengths do not belong together or there is no step.
    """

    observations: np.ndarray
    """``[T + 1, *shape]``; the last is what the last action led to."""
    actions: np.ndarray
    """``[T]``, integers."""
    rewards: np.ndarray
    """``[T]``."""
    terminated: bool
    """Whether it ended by the rules of the environment."""
    truncated: bool
    """Whether it was broken off."""

    def __post_init__(self) -> None:
        num_steps = len(self.actions)
        if (
            num_steps == 0
            or len(self.rewards) != num_steps
            or len(self.observations) != num_steps + 1
        ):
            raise ValueError(
                f"an episode of T >= 1 steps has T actions and rewards and T + 1 observations, got "
                f"{num_steps} actions, {len(self.rewards)} rewards and {len(self.observations)} "
                "observations. If the observation after the last action was not logged, leave out "
                "the last step."
            )
        if not np.issubdtype(np.asarray(self.actions).dtype, np.integer):
            raise ValueError(
                f"actions must be integers, got {np.asarray(self.actions).dtype}; discrete actions "
                "are numbered from 0."
            )

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def episode_return(self) -> float:
        """The sum of the rewards, not discounted."""
        return float(np.sum(self.rewards, dtype=np.float64))


def save_episodes(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Write episodes to one safetensors file, atomically.

    Raises:
        ValueError: If there are none, or their observations differ in shape or type.
        OSError: If the file cannot be written.
    """
    episodes = list(episodes)
    check_not_empty("episodes", episodes)
    kinds = {(e.observations.shape[1:], e.observations.dtype) for e in episodes}
    if len(kinds) > 1:
        raise ValueError(
            f"observations must be of one shape and type, got {sorted(map(str, kinds))}."
        )
    arrays = {
        "observations": np.concatenate([e.observations for e in episodes]),
        "actions": np.concatenate([e.actions for e in episodes]).astype(np.int64),
        "rewards": np.concatenate([e.rewards for e in episodes]).astype(np.float32),
        "lengths": np.array([len(e) for e in episodes], dtype=np.int64),
        "terminated": np.array([e.terminated for e in episodes]),
        "truncated": np.array([e.truncated for e in episodes]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_tensors(path, tensors, metadata={"episodes": json.dumps({"version": 1})})


def load_episodes(path: str | Path) -> list[Episode]:
    """Read what :func:`save_episodes` wrote; the observations share one array.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or holds something else.
    """
    try:
        with safe_open(str(path), framework="np") as file:
            if "episodes" not in (file.metadata() or {}):
                raise ValueError(
                    f"{path} holds no episodes; it was not written by save_episodes. A replay "
                    "buffer is read by ReplayBuffer.load."
                )
            arrays = {name: file.get_tensor(name) for name in _FIELDS}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole file of episodes ({error}).") from error
    ends = np.cumsum(arrays["lengths"])
    return [
        Episode(
            observations=arrays["observations"][start + i : end + i + 1],
            actions=arrays["actions"][start:end],
            rewards=arrays["rewards"][start:end],
            terminated=bool(arrays["terminated"][i]),
            truncated=bool(arrays["truncated"][i]),
        )
        for i, (start, end) in enumerate(zip(ends - arrays["lengths"], ends, strict=True))
    ]
