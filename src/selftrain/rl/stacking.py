"""The last observations of each environment, as the network sees them."""

import numpy as np
from numpy.typing import NDArray


class ObservationStack:
    """Keeps the latest observations of environments, oldest first, zero before an episode's start.

    The same stacks that the replay rebuilds from single observations.

    Args:
        num_envs: Number of environments E.
        shape: Shape of one observation.
        dtype: Its type.
        stack: Number of observations K. With 1 there is nothing to keep, and no axis for it.
    """

    def __init__(
        self, num_envs: int, shape: tuple[int, ...], dtype: np.dtype, *, stack: int
    ) -> None:
        self._past = np.zeros((num_envs, stack - 1, *shape), dtype)

    def with_latest(self, observations: np.ndarray) -> NDArray:
        """Return ``[E, K, *shape]`` that end in ``observations``, or these themselves if K is 1."""
        if not self._past.shape[1]:
            return observations
        return np.concatenate([self._past, observations[:, None]], axis=1)

    def push(self, observations: np.ndarray, ended: np.ndarray) -> None:
        """Take ``[E, *shape]`` into the past, and forget that of environments that ended."""
        if not self._past.shape[1]:
            return
        self._past = np.concatenate([self._past[:, 1:], observations[:, None]], axis=1)
        self._past[ended] = 0
