"""Learning values from experience: replay and logged episodes, agents, learning from logs alone."""

from selftrain.rl.batch import Batch, Window
from selftrain.rl.config import DQNConfig
from selftrain.rl.dqn import DQN
from selftrain.rl.episodes import Episode, load_episodes, save_episodes
from selftrain.rl.evaluate import Evaluation, evaluate
from selftrain.rl.minari import load_minari
from selftrain.rl.offline import CQL
from selftrain.rl.offline_config import CQLConfig
from selftrain.rl.record import EvaluatedAt
from selftrain.rl.replay import ReplayBuffer
from selftrain.rl.train import TrainResult, train
from selftrain.rl.wordle import LegalLetters, WordleEncoder, wordle_episodes

__all__ = [
    "CQL",
    "DQN",
    "Batch",
    "CQLConfig",
    "DQNConfig",
    "Episode",
    "EvaluatedAt",
    "Evaluation",
    "LegalLetters",
    "ReplayBuffer",
    "TrainResult",
    "Window",
    "WordleEncoder",
    "evaluate",
    "load_episodes",
    "load_minari",
    "save_episodes",
    "train",
    "wordle_episodes",
]
