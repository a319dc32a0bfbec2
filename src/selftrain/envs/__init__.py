"""Environments, and their ids for Gymnasium: importing this package registers "selftrain/..."."""

import gymnasium as gym

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
    "WordList",
    "WordleEnv",
    "WordleGame",
    "WordleVectorEnv",
    "embedded_words",
    "load_wordle",
    "log_wordle",
    "play_wordle",
    "save_wordle",
]

if "selftrain/Wordle-v0" not in gym.registry:
    gym.register(
        "selftrain/Wordle-v0",
        entry_point="selftrain.envs.wordle:WordleEnv",
        vector_entry_point="selftrain.envs.wordle:WordleVectorEnv",
    )
