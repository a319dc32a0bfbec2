"""Conservative Q-learning does better than the logs it learns from."""

import numpy as np
import pytest
import torch

from selftrain.envs import CatchVectorEnv
from selftrain.nn import MLPEncoder, QNetwork, value_head
from selftrain.ops import HLGauss, Support
from selftrain.rl import CQL, CQLConfig, ReplayBuffer

SIZE, NUM_GAMES = 6, 400


def play_catch(act, seed, buffer=None):
    """Return the mean return of a game in each environment, and log it into the buffer."""
    env = CatchVectorEnv(NUM_GAMES, size=SIZE)
    frames, _ = env.reset(seed=seed)
    total = np.zeros(NUM_GAMES)
    for _ in range(SIZE - 1):
        actions = act(frames)
        following, rewards, terminated, truncated, _ = env.step(actions)
        if buffer is not None:
            buffer.add(frames, actions, rewards, terminated, truncated)
        frames, total = following, total + rewards
    assert terminated.all()
    return total.mean()


@pytest.mark.parametrize(
    ("transform", "num_updates", "learning_rate"),
    [
        (None, 400, 2e-3),
        (HLGauss(Support(-2.0, 2.0, 41)), 1000, 5e-3),  # slower to begin with
    ],
    ids=["scalar", "hl_gauss"],
)
def test_catch_is_learned_from_a_saved_replay_of_mixed_play(
    transform, num_updates, learning_rate, tmp_path
):
    rng = np.random.default_rng(0)

    def mixed(frames):
        ball, paddle = frames[:, :-1].any(1).argmax(1), frames[:, -1].argmax(1)
        noise = rng.integers(3, size=NUM_GAMES)
        return np.where(rng.random(NUM_GAMES) < 0.3, np.sign(ball - paddle) + 1, noise)

    capacity = NUM_GAMES * (SIZE - 1)
    buffer = ReplayBuffer((SIZE, SIZE), capacity=capacity, num_envs=NUM_GAMES)
    logged = play_catch(mixed, 0, buffer)
    buffer.save(tmp_path / "log.safetensors")
    torch.manual_seed(0)
    network = QNetwork(MLPEncoder(SIZE * SIZE, (64, 64)), 3, value_head(transform))
    config = CQLConfig(num_updates=num_updates, learning_rate=learning_rate, target_every=40)
    learner = CQL(network, config)
    learner.fit(ReplayBuffer.load(tmp_path / "log.safetensors"))
    assert logged < 0.3
    assert play_catch(learner.choose, 1) > 0.9
