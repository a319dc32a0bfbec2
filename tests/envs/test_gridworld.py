"""The gridworld: its optimal values against other ways to compute them, and its disturbances."""

from functools import cache

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from selftrain.envs import NoisyGridVectorEnv

UP, RIGHT, DOWN, LEFT, NOTHING = range(5)
STEPS = {UP: (-1, 0), RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1)}


def move(size, row, column, action):
    down, right = STEPS[action]
    return min(max(row + down, 0), size - 1), min(max(column + right, 0), size - 1)


def by_enumeration(size, sticky, discount, horizon):
    """Return the best expected return of each state and action within ``horizon`` steps."""

    @cache
    def value(row, column, before, action, steps):
        if steps == 0 or (row, column) == (size - 1, size - 1):
            return 0.0
        outcomes = [(1.0, action)]
        if before != NOTHING:
            outcomes = [(1 - sticky, action), (sticky, before)]
        total = 0.0
        for probability, executed in outcomes:
            after = move(size, row, column, executed)
            if after == (size - 1, size - 1):
                total += probability
            else:
                ahead = max(value(*after, executed, a, steps - 1) for a in STEPS)
                total += probability * discount * ahead
        return total

    values = np.zeros((size, size, 5, 4))
    for state in np.ndindex(size, size, 5, 4):
        values[state] = value(*state, horizon)
    return values


@pytest.mark.parametrize(("size", "sticky"), [(2, 0.0), (2, 0.4), (3, 0.25), (4, 0.6)])
def test_optimal_values_are_those_of_enumeration(size, sticky):
    env = NoisyGridVectorEnv(1, size=size, sticky=sticky)
    want = by_enumeration(size, sticky, 0.5, 34)  # what is left out is below 2^-34
    np.testing.assert_allclose(env.optimal_values(0.5), want, atol=2e-9)


def test_undisturbed_values_are_discounts_to_the_distance():
    values = NoisyGridVectorEnv(1, size=6).optimal_values(0.9)
    for row, column in np.ndindex(6, 6):
        distance = 10 - row - column
        want = 0.9 ** (distance - 1) if distance else 0.0
        np.testing.assert_allclose(values[row, column].max(-1), want)


def test_the_noise_of_rewards_changes_no_optimal_value():
    quiet, noisy = (NoisyGridVectorEnv(1, reward_noise=eta, sticky=0.2) for eta in (0.0, 3.0))
    np.testing.assert_array_equal(quiet.optimal_values(), noisy.optimal_values())


def test_playing_by_the_optimal_values_earns_them():
    discount, num_envs = 0.9, 6000
    env = NoisyGridVectorEnv(num_envs, size=4, sticky=0.5, reward_noise=1.0)
    values = env.optimal_values(discount)
    observations, _ = env.reset(seed=0)

    def read(observations):
        row, column = np.divmod(observations[:, :16].argmax(-1), 4)
        acted = observations[:, 16:]
        return values[row, column, np.where(acted.any(-1), acted.argmax(-1), NOTHING)]

    want = read(observations).max(-1)
    returns, factor, running = np.zeros(num_envs), 1.0, np.ones(num_envs, bool)
    for _ in range(99):
        observations, rewards, terminated, _, _ = env.step(read(observations).argmax(-1))
        returns += factor * rewards * running
        running &= ~terminated
        factor *= discount
    error = returns - want
    assert not running.any()
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(num_envs)


def walk(num_envs, action, *, sticky=0.0, reward_noise=0.0, size=5):
    env = NoisyGridVectorEnv(num_envs, sticky=sticky, reward_noise=reward_noise, size=size)
    env.reset(seed=0)
    return [env.step(np.full(num_envs, a)) for a in action]


def test_the_noise_is_uniform_of_the_stated_width_and_mean_zero():
    (_, rewards, terminated, _, _), *_ = walk(20_000, [UP], reward_noise=0.8)
    noise = rewards - terminated
    assert -0.4 <= noise.min() < -0.39
    assert 0.39 < noise.max() <= 0.4
    assert abs(noise.mean()) < 4 * 0.8 / np.sqrt(12 * 20_000)
    assert abs(noise.std() - 0.8 / np.sqrt(12)) < 0.005


def test_the_goals_reward_is_noisy_as_well():
    outcomes = walk(5000, [RIGHT, RIGHT, RIGHT, RIGHT, DOWN, DOWN, DOWN, DOWN], reward_noise=0.8)
    goals = np.concatenate([rewards[terminated] for _, rewards, terminated, _, _ in outcomes])
    assert len(goals) > 1000
    assert abs(goals.mean() - 1) < 4 * goals.std() / np.sqrt(len(goals))
    assert goals.std() > 0.2


def test_an_action_is_repeated_as_often_as_stated():
    # The second step shows what was done in it: the last four numbers of the observation.
    outcomes = walk(20_000, [UP, LEFT], sticky=0.3)
    first, second = (observations[:, 25:] for observations, *_ in outcomes)
    assert first[:, UP].all(), "there is nothing to repeat in an episode's first step"
    repeated = second[:, UP].mean()
    assert abs(repeated - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
    assert (second.sum(-1) == 1).all()


def test_what_is_repeated_is_what_was_done_not_what_was_wanted():
    outcomes = walk(20_000, [UP, LEFT, UP], sticky=0.5)
    second, third = (observations[:, 25:] for observations, *_ in outcomes[1:])
    went_up = second[:, UP] == 1
    # Wanted is up; after up it is up for sure, after left with probability one half.
    assert third[went_up, UP].all()
    share = third[~went_up, UP].mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt((~went_up).sum())


def test_nothing_is_repeated_across_episodes():
    env = NoisyGridVectorEnv(4000, size=2, sticky=0.99)
    observations, _ = env.reset(seed=0)
    for action in (DOWN, RIGHT, DOWN, RIGHT, DOWN, RIGHT):
        ended = env._ended.copy()
        observations, *_ = env.step(np.full(4000, action))
        assert not observations[ended, 4:].any(), "an episode starts with nothing done"


def test_walkers_start_in_any_cell_but_the_goal():
    observations, _ = NoisyGridVectorEnv(9000, size=3).reset(seed=0)
    share = observations[:, :9].mean(0)
    assert share[8] == 0
    np.testing.assert_allclose(share[:8], 1 / 8, atol=4 * np.sqrt(1 / 8 * 7 / 8 / 9000))
    assert not observations[:, 9:].any()


def test_episodes_are_truncated_at_the_limit_and_not_at_the_goal():
    env = NoisyGridVectorEnv(50, size=3, max_episode_steps=4)
    env.reset(seed=0)
    for step in range(1, 5):
        _, _, terminated, truncated, _ = env.step(np.full(50, UP))
        assert not terminated.any(), "up never leads to the goal in the last row"
        assert truncated.all() == (step == 4)
    assert not env.step(np.full(50, UP))[3].any(), "the step that begins an episode counts none"
    for step in range(1, 5):
        assert env.step(np.full(50, UP))[3].all() == (step == 4)


def test_an_arrival_at_the_limit_is_terminated_alone():
    env = NoisyGridVectorEnv(200, size=2, max_episode_steps=1)
    env.reset(seed=0)
    _, rewards, terminated, truncated, _ = env.step(np.full(200, RIGHT))
    assert terminated.any()
    np.testing.assert_array_equal(truncated, ~terminated)
    np.testing.assert_array_equal(rewards, terminated)


@pytest.mark.parametrize("observation", ["one_hot", "pixels"])
def test_observations_of_states_are_those_of_play(observation):
    env = NoisyGridVectorEnv(300, size=3, observation=observation, sticky=0.2)
    all_states = env.state_observations()
    assert all_states.shape == (3, 3, 5, *env.single_observation_space.shape)
    observations, _ = env.reset(seed=0)
    assert all_states.dtype == observations.dtype
    flat = {state.tobytes() for state in all_states.reshape(45, -1)}
    for _ in range(5):
        assert {row.tobytes() for row in observations} <= flat
        assert env.observation_space.contains(observations)
        observations = env.step(env.action_space.sample())[0]
    assert len(flat) == (45 if observation == "one_hot" else 9)


def test_pixels_show_walker_and_goal():
    frames = NoisyGridVectorEnv(1, size=3, observation="pixels").state_observations()
    assert frames[0, 1, 0].tolist() == [[0, 255, 0], [0, 0, 0], [0, 0, 128]]
    assert frames[2, 2, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("observation", ["one_hot", "pixels"])
def test_gymnasium_approves_of_it(observation):
    settings = {"observation": observation, "sticky": 0.2, "reward_noise": 0.5}
    check_env(gymnasium.make("selftrain/NoisyGrid-v0", **settings).unwrapped)


def test_the_id_makes_the_vector_environment():
    env = gymnasium.make_vec("selftrain/NoisyGrid-v0", num_envs=3, size=4)
    assert isinstance(env, NoisyGridVectorEnv)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 1},
        {"reward_noise": -0.1},
        {"sticky": 1.0},
        {"observation": "words"},
        {"max_episode_steps": 0},
        {"num_envs": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NoisyGridVectorEnv(**{"num_envs": 1, **settings})


def test_a_discount_of_one_is_refused():
    with pytest.raises(ValueError, match="discount"):
        NoisyGridVectorEnv(1).optimal_values(1.0)
