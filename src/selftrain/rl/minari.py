"""Logged episodes from folders in the format of Minari (extra ``minari``)."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from selftrain._core.optional import require
from selftrain.rl.episodes import Episode

__all__ = ["load_minari"]


def load_minari(folder: str | Path, *, max_episodes: int | None = None) -> list[Episode]:
    """Read the episodes of a Minari dataset from a local folder.

    Actions are numbered from 0, observations in float64 become float32. An episode whose last step
    neither terminated nor truncated was cut off by the end of the recording: it counts as
    truncated. Rewards are as logged; for a support of [-10, 10], say, clip them yourself.

    Minari compresses images with losses unless the dataset was written with
    ``jpeg_encoding=False``.

    Args:
        folder: The dataset's folder, as ``minari download`` makes it under ``~/.minari/datasets``:
            it holds ``data/metadata.json``. Nothing is downloaded.
        max_episodes: Read at most so many, from the first on; None for all.

    Raises:
        MissingExtraError: If ``minari`` is not installed.
        FileNotFoundError: If the folder holds no dataset.
        ValueError: If actions are not discrete, observations not arrays, or an episode goes on
            after its end.
    """
    minari = require("minari", extra="minari")
    folder = Path(folder).expanduser()
    data = folder if (folder / "metadata.json").exists() else folder / "data"
    if not (data / "metadata.json").exists():
        raise FileNotFoundError(
            f"folder: {folder} holds no data/metadata.json, so it is no Minari dataset. Give the "
            "folder of one dataset, such as ~/.minari/datasets/atari/pong/expert-v0."
        )
    dataset = minari.MinariDataset(data)
    actions, observations = dataset.action_space, dataset.observation_space
    if not isinstance(actions, gym.spaces.Discrete):
        raise ValueError(f"actions of {folder} must be discrete, but its space is {actions}.")
    kinds = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
    if not isinstance(observations, kinds):
        raise ValueError(
            f"observations of {folder} must be arrays or numbers, but their space is "
            f"{observations}. Flatten them when the dataset is recorded."
        )
    indices = dataset.episode_indices[:max_episodes]
    first = int(actions.start)
    return [_episode(row, first, folder) for row in dataset.iterate_episodes(indices)]


def _episode(row: Any, first_action: int, folder: Path) -> Episode:
    ends = np.asarray(row.terminations, bool) | np.asarray(row.truncations, bool)
    if ends[:-1].any():
        raise ValueError(
            f"{folder}: episode {row.id} ends at step {int(ends.argmax())} and goes on to step "
            f"{len(ends) - 1}; an episode must end with its last step."
        )
    observations = np.asarray(row.observations)
    if observations.dtype == np.float64:
        observations = observations.astype(np.float32)
    terminated = bool(row.terminations[-1])
    return Episode(
        observations=observations,
        actions=np.asarray(row.actions).astype(np.int64) - first_action,
        rewards=np.asarray(row.rewards, np.float32),
        terminated=terminated,
        truncated=not terminated,
    )
