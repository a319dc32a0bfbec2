"""Vector environments small enough to know all about."""

from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv


class FixedLengths(VectorEnv):
    """Environment i always plays ``lengths[i]`` steps, each of which gives 1."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, lengths, *, terminate=True):
        self.lengths, self.terminate = np.array(lengths), terminate
        self.num_envs = len(lengths)
        self.single_observation_space = gymnasium.spaces.Box(0.0, 100.0, (1,))
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.at, self.ended = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        return self._observations(), {}

    def step(self, actions):
        self.at = np.where(self.ended, 0, self.at + 1)
        rewards = np.where(self.ended, 0.0, 1.0)
        self.ended = ~self.ended & (self.at == self.lengths)
        no = np.zeros(self.num_envs, bool)
        ends = (self.ended, no) if self.terminate else (no, self.ended)
        return self._observations(), rewards, *ends, {}

    def _observations(self):
        return self.at[:, None].astype(np.float32)
