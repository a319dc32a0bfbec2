"""Value agents learn: a game of pixels and CartPole, with each head, on one thread."""

from dataclasses import replace

import gymnasium
import pytest

import selftrain.envs  # noqa: F401 - registers Catch
from selftrain.ops import C51, HLGauss, Support, TwoHot
from selftrain.rl import DQN, DQNConfig, evaluate, train

CATCH = DQNConfig(learning_rate=1e-3, warmup_steps=500, epsilon_steps=3_000, update_every=2)
CARTPOLE = DQNConfig(learning_rate=1e-3, discount=0.98, epsilon_steps=4_000, target_decay=0.995)


def make_head(name, low, high):
    support = Support(low, high, 51)
    kinds = {"hl_gauss": HLGauss, "two_hot": TwoHot, "c51": C51}
    return None if name == "mse" else kinds[name](support)


def score_after(env_id, num_env_steps, config, head, *, seed=0, num_episodes=100):
    """Return the mean return of greedy episodes after training."""
    env = gymnasium.make_vec(env_id, num_envs=8)
    agent = DQN(env.single_observation_space, env.single_action_space, config, head=head, seed=seed)
    train(agent, env, num_env_steps, show_progress=False)
    found = evaluate(agent, gymnasium.make_vec(env_id, num_envs=50), num_episodes, seed=seed)
    return found.mean


def test_hl_gauss_learns_to_catch():
    head = make_head("hl_gauss", -1.5, 1.5)
    assert score_after("selftrain/Catch-v0", 12_000, CATCH, head) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mse", "two_hot", "c51"])
def test_every_head_learns_to_catch(head):
    head = make_head(head, -1.5, 1.5)
    assert score_after("selftrain/Catch-v0", 16_000, CATCH, head) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mse", "two_hot", "hl_gauss", "c51"])
def test_every_head_learns_to_balance_a_pole(head):
    """A random player keeps the pole for about 22 steps, a perfect one for 500."""
    head = make_head(head, 0.0, 60.0)
    assert score_after("CartPole-v1", 16_000, CARTPOLE, head) >= 150


@pytest.mark.slow
def test_the_parts_of_rainbow_learn_to_catch():
    config = replace(CATCH, priority_exponent=0.5, importance_exponent=0.5, dueling=True)
    head = make_head("c51", -1.5, 1.5)
    assert score_after("selftrain/Catch-v0", 12_000, config, head) >= 0.8
