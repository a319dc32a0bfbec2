"""Learning values from experience: replay of steps, logged episodes, learning from logs alone."""

from selftrain.rl.batch import Batch, Window
from selftrain.rl.episodes import Episode, load_episodes, save_episodes
from selftrain.rl.minari import load_minari
from selftrain.rl.offline import CQL
from selftrain.rl.offline_config import CQLConfig
from selftrain.rl.replay import ReplayBuffer
from selftrain.rl.wordle import LegalLetters, WordleEncoder, wordle_episodes

__all__ = [
    "CQL",
    "Batch",
    "CQLConfig",
    "Episode",
    "LegalLetters",
    "ReplayBuffer",
    "Window",
    "WordleEncoder",
    "load_episodes",
    "load_minari",
    "save_episodes",
    "wordle_episodes",
]
