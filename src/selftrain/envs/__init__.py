"""Environments; importing the package registers their Gymnasium ids ``selftrain/...``."""

import gymnasium

from selftrain.envs.atari import make_atari
from selftrain.envs.gridworld import NoisyGridEnv, NoisyGridVectorEnv
from selftrain.envs.toy import CatchEnv, CatchVectorEnv

__all__ = [
    "CatchEnv",
    "CatchVectorEnv",
    "NoisyGridEnv",
    "NoisyGridVectorEnv",
    "make_atari",
]

for _name, _module in (("Catch", "toy"), ("NoisyGrid", "gridworld")):
    if f"selftrain/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"selftrain/{_name}-v0",
            entry_point=f"selftrain.envs.{_module}:{_name}Env",
            vector_entry_point=f"selftrain.envs.{_module}:{_name}VectorEnv",
        )
