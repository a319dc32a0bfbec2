"""Conservative Q-learning does better than the logs it learns from."""

import numpy as np
import pytest
import torch

from selftrain.envs import CatchVectorEnv, WordList, embedded_words, log_wordle, play_wordle
from selftrain.nn import MLPEncoder, QNetwork, value_head
from selftrain.ops import HLGauss, Support, TwoHot
from selftrain.rl import (
    CQL,
    CQLConfig,
    LegalLetters,
    ReplayBuffer,
    WordleEncoder,
    wordle_episodes,
)

SIZE, NUM_GAMES = 6, 400
SUPPORT = Support(-2.0, 2.0, 41)
HEADS = {"scalar": None, "hl_gauss": HLGauss(SUPPORT), "two_hot": TwoHot(SUPPORT)}


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


@pytest.mark.parametrize("head", HEADS)
def test_catch_is_learned_from_a_saved_replay_of_mixed_play(head, tmp_path):
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
    network = QNetwork(MLPEncoder(SIZE * SIZE, (64, 64)), 3, value_head(HEADS[head]))
    config = CQLConfig(num_updates=400, learning_rate=2e-3, target_every=40)
    learner = CQL(network, config)
    learner.fit(ReplayBuffer.load(tmp_path / "log.safetensors"))
    assert logged < 0.3
    assert play_catch(learner.choose, 1) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("head", [None, HLGauss(Support(-7.0, 1.0, 51))])
def test_wordle_is_learned_better_than_its_log_was_played(head):
    words = WordList(embedded_words()[::10][:20])
    games = log_wordle(words, 1500, skill=(0.0, 0.5))
    torch.manual_seed(0)
    encoder = WordleEncoder(num_features=32, num_layers=2)
    config = CQLConfig(discount=1.0, num_steps=5, learning_rate=1e-3, num_updates=1500)
    learner = CQL(QNetwork(encoder, 26, value_head(head)), config, legal=LegalLetters(words))
    learner.fit(wordle_episodes(games, words))
    played = play_wordle(lambda boards, _: learner.choose(boards), words)

    def cost(them):
        return np.mean([len(game.guesses) - game.solved for game in them])

    assert cost(played) < cost(games) - 0.5
