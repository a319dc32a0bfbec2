"""Learning values from experience: replay of steps and logged episodes, agents that learn."""

from selftrain.rl.batch import Batch, Window
from selftrain.rl.config import DQNConfig
from selftrain.rl.dqn import DQN
from selftrain.rl.episodes import Episode, load_episodes, save_episodes
from selftrain.rl.evaluate import Evaluation, evaluate
from selftrain.rl.record import EvaluatedAt
from selftrain.rl.replay import ReplayBuffer
from selftrain.rl.train import TrainResult, train

__all__ = [
    "DQN",
    "Batch",
    "DQNConfig",
    "Episode",
    "EvaluatedAt",
    "Evaluation",
    "ReplayBuffer",
    "TrainResult",
    "Window",
    "evaluate",
    "load_episodes",
    "save_episodes",
    "train",
]
