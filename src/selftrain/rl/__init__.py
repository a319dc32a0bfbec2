"""Learning values from experience: replay of steps and logged episodes."""

from selftrain.rl.batch import Batch, Window
from selftrain.rl.episodes import Episode, load_episodes, save_episodes
from selftrain.rl.replay import ReplayBuffer

__all__ = [
    "Batch",
    "Episode",
    "ReplayBuffer",
    "Window",
    "load_episodes",
    "save_episodes",
]
