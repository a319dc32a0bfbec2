"""The wrapper of ale-py's vector environment, against ale-py itself."""

import sys

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from selftrain.envs import make_atari
from selftrain.errors import MissingExtraError

pytest.importorskip("ale_py", reason="ale-py is not installed (extra: atari)")
from ale_py.vector_env import AtariVectorEnv


def play(env, num_steps, *, seed=0, actions_seed=1):
    """Return the first frames, and all that each step gave, of random actions."""
    rng = np.random.default_rng(actions_seed)
    first, _ = env.reset(seed=seed)
    num_actions = env.single_action_space.n
    actions = rng.integers(num_actions, size=(num_steps, env.num_envs))
    return first, [env.step(row) for row in actions]


def column(steps, key):
    if isinstance(key, str):
        return np.stack([step[4][key] for step in steps])
    return np.stack([step[key] for step in steps])


FRAMES, REWARDS, TERMINATED, TRUNCATED = range(4)


def ale(num_envs, game="breakout", **settings):
    fixed = {"stack_num": 1, "reward_clipping": False, "use_fire_reset": False}
    return AtariVectorEnv(game, num_envs, **fixed, **settings)


def seeds_of(seed, num_envs):
    """The seeds that the wrapper gives to ale-py: the first draw of Gymnasium's generator."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    return rng.integers(2**31 - 1, size=num_envs)


@pytest.fixture(scope="module")
def breakout():
    """About two and a half games each of two, of lost lives that terminate."""
    env = make_atari("breakout", 2, sticky=0.0, life_loss_terminates=True)
    return play(env, 500)


def test_spaces_hold_what_comes_out(breakout):
    env = make_atari("breakout", 2)
    first, steps = breakout
    assert env.observation_space.contains(first)
    assert all(env.observation_space.contains(step[FRAMES]) for step in steps)
    assert env.single_observation_space.shape == (84, 84)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_frames_and_rewards_are_those_of_ale_py(breakout):
    peer = ale(2, noop_max=30, life_loss_info=True)
    first, _ = peer.reset(seed=seeds_of(0, 2))
    rng = np.random.default_rng(1)
    theirs = [peer.step(row) for row in rng.integers(4, size=(500, 2))]
    np.testing.assert_array_equal(breakout[0], first[:, 0])
    for key in (REWARDS, TERMINATED, TRUNCATED):
        np.testing.assert_array_equal(column(breakout[1], key), column(theirs, key))
    np.testing.assert_array_equal(column(breakout[1], FRAMES), column(theirs, FRAMES)[:, :, 0])


def test_rewards_are_floats_and_not_clipped():
    # The top rows of bricks give more than 1, and so do Q*bert's cubes from the start.
    _, steps = play(make_atari("qbert", 2, sticky=0.0), 60)
    rewards = column(steps, REWARDS)
    assert rewards.dtype == np.float32
    assert rewards.max() == 25.0


def test_a_lost_life_terminates_and_the_game_goes_on(breakout):
    steps = breakout[1]
    terminated, over = column(steps, TERMINATED), column(steps, "game_over")
    lives, valid = column(steps, "lives"), column(steps, "valid")
    lost = terminated[:-1] & ~over[:-1]
    assert lost.sum() >= 8, "four lives before the last, in two games"
    assert valid[1:][lost].all(), "the step after a lost life is a transition"
    np.testing.assert_array_equal(lives[1:][lost], lives[:-1][lost])


def test_only_the_step_after_a_game_is_no_transition(breakout):
    steps = breakout[1]
    over, valid = column(steps, "game_over"), column(steps, "valid")
    assert over.sum() >= 2
    np.testing.assert_array_equal(valid[1:], ~over[:-1])
    assert valid[0].all()
    began = ~valid
    assert (column(steps, "lives")[began] == 5).all()
    assert (column(steps, REWARDS)[began] == 0).all()
    assert not column(steps, TERMINATED)[began].any()


def test_the_action_of_a_beginning_is_ignored():
    both = [make_atari("breakout", 1, sticky=0.0, noop_max=1) for _ in range(2)]
    for env in both:
        env.reset(seed=3)
    while True:
        outcomes = [env.step(np.array([1])) for env in both]  # FIRE and nothing else: soon lost
        if outcomes[0][4]["game_over"][0]:
            break
    frames = [
        env.step(np.array([action]))[FRAMES] for env, action in zip(both, (2, 3), strict=True)
    ]
    np.testing.assert_array_equal(*frames)


def test_without_the_option_only_a_game_that_ended_terminates():
    _, steps = play(make_atari("breakout", 2, sticky=0.0), 500)
    terminated, over = column(steps, TERMINATED), column(steps, "game_over")
    np.testing.assert_array_equal(terminated, over)
    assert over.sum() >= 2


def test_a_game_without_lives_is_not_over_at_zero_lives():
    _, steps = play(make_atari("pong", 1, life_loss_terminates=True), 60)
    assert (column(steps, "lives") == 0).all()
    assert not column(steps, TERMINATED).any()
    assert column(steps, "valid").all()


def test_a_game_that_is_cut_off_is_truncated_and_begins_again():
    _, steps = play(make_atari("pong", 2, noop_max=0, max_episode_steps=10), 34)
    truncated = column(steps, TRUNCATED)
    # Ten steps, then the beginning of the next, which counts none.
    np.testing.assert_array_equal(np.flatnonzero(truncated[:, 0]), [9, 20, 31])
    np.testing.assert_array_equal(np.flatnonzero(~column(steps, "valid")[:, 0]), [10, 21, 32])
    assert not column(steps, TERMINATED).any()


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_seed_decides_everything(sticky):
    runs = [play(make_atari("breakout", 3, sticky=sticky), 200) for _ in range(2)]
    for key in (FRAMES, REWARDS, TERMINATED):
        np.testing.assert_array_equal(column(runs[0][1], key), column(runs[1][1], key))


def test_the_number_of_threads_decides_nothing():
    runs = [play(make_atari("breakout", 5, num_threads=n), 100)[1] for n in (1, 3)]
    np.testing.assert_array_equal(column(runs[0], FRAMES), column(runs[1], FRAMES))


def test_sticky_actions_change_the_course():
    runs = [play(make_atari("breakout", 1, sticky=s, noop_max=0), 100)[1] for s in (0.0, 0.25)]
    assert not np.array_equal(column(runs[0], FRAMES), column(runs[1], FRAMES))


def test_neighbouring_seeds_share_no_game():
    lengths = set()
    for seed in range(3):
        env = make_atari("breakout", 4, sticky=0.25)
        _, steps = play(env, 60, seed=seed)
        frames = column(steps, FRAMES)
        lengths |= {frames[:, e].tobytes() for e in range(4)}
    assert len(lengths) == 12


def test_resetting_again_goes_on_with_the_same_random_numbers():
    courses = []
    for _ in range(2):
        env = make_atari("breakout", 2)
        env.reset(seed=0)
        env.step(np.array([0, 0]))
        env.reset()
        courses.append([env.step(np.array([1, 2]))[FRAMES] for _ in range(40)])
    np.testing.assert_array_equal(courses[0], courses[1])


def test_a_mask_resets_some_games_only():
    env = make_atari("pong", 2, noop_max=0)
    env.reset(seed=0)
    for _ in range(80):
        frames = env.step(np.array([2, 2]))[FRAMES]
    reset, _ = env.reset(options={"reset_mask": np.array([True, False])})
    assert not np.array_equal(reset[0], frames[0])
    np.testing.assert_array_equal(reset[1], frames[1])
    assert env.step(np.array([0, 0]))[4]["valid"].all()


def test_returned_arrays_are_not_written_again():
    env = make_atari("pong", 2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    _, steps = [env.step(np.array([2, 3])) for _ in range(2)]
    copies = [np.array(part) for part in steps[:4]]
    for _ in range(30):
        env.step(np.array([2, 3]))
    np.testing.assert_array_equal(first, kept)
    for part, copy in zip(steps[:4], copies, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_all_actions_can_be_had():
    assert make_atari("freeway", 1).single_action_space.n == 3
    assert make_atari("freeway", 1, full_action_space=True).single_action_space.n == 18


def test_closing_is_possible_twice():
    env = make_atari("pong", 1)
    env.reset(seed=0)
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("game", "hint"), [("MsPacman", "did you mean 'ms_pacman'"), ("qwertz", "got 'qwertz'")]
)
def test_an_unknown_game_is_refused_with_a_hint(game, hint):
    with pytest.raises(ValueError, match=hint):
        make_atari(game, 1)


@pytest.mark.parametrize(
    "setting", [{"sticky": 1.5}, {"frame_skip": 0}, {"noop_max": -1}, {"max_episode_steps": 0}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        make_atari("pong", 1, **setting)


@pytest.mark.parametrize("actions", [[0], [0, 6], [-1, 0], [0.0, 1.0]])
def test_actions_that_are_none_are_refused(actions):
    env = make_atari("pong", 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))


def test_a_missing_package_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "ale_py"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(MissingExtraError, match=r"selftrain\[atari\]"):
        make_atari("pong", 1)
