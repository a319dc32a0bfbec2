"""Environments; importing the package registers their Gymnasium ids ``selftrain/...``."""

import gymnasium

from selftrain.envs.atari import make_atari
from selftrain.envs.gridworld import NoisyGridEnv, NoisyGridVectorEnv
from selftrain.envs.toy import CatchEnv, CatchVectorEnv
from selftrain.envs.wordle import WordleEnv, WordleVectorEnv
from selftrain.envs.wordle_games import (
    WordleGame,
    load_wordle,
    log_wordle,
    play_wordle,
    save_wordle,
)
from selftrain.envs.wordle_words import WordList, embedded_words

__all__ = [
    "CatchEnv",
    "CatchVectorEnv",
    "NoisyGridEnv",
    "NoisyGridVectorEnv",
    "WordList",
    "WordleEnv",
    "WordleGame",
    "WordleVectorEnv",
    "embedded_words",
    "load_wordle",
    "log_wordle",
    "make_atari",
    "play_wordle",
    "save_wordle",
]

for _name, _module in (("Catch", "toy"), ("NoisyGrid", "gridworld"), ("Wordle", "wordle")):
    if f"selftrain/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            f"selftrain/{_name}-v0",
            entry_point=f"selftrain.envs.{_module}:{_name}Env",
            vector_entry_point=f"selftrain.envs.{_module}:{_name}VectorEnv",
        )
