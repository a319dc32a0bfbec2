import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.envs import CatchEnv, CatchVectorEnv


def positions(frames):
    """Return (ball row, ball column, paddle column) of each frame, or the ball's at the bottom."""
    found = []
    for frame in frames:
        rows, columns = np.nonzero(frame[:-1])
        paddle = np.flatnonzero(frame[-1])
        if len(rows) == 1:
            found.append((int(rows[0]), int(columns[0]), int(paddle[0])))
        else:
            found.append((len(frame) - 1, None, None))
    return found


def follow(frames, before=None):
    """Move each paddle below its ball; with frames of the step before, to where it will land."""
    actions = []
    for index, (row, column, paddle) in enumerate(positions(frames)):
        goal = column
        if column is not None and before is not None:
            size = len(frames[index])
            old_row, old_column, _ = positions(before[index : index + 1])[0]
            velocity = column - old_column if old_row == row - 1 else 0
            for _ in range(size - 1 - row):
                goal += velocity
                if not 0 <= goal < size:
                    velocity, goal = -velocity, goal - 2 * velocity
        actions.append(1 if goal is None else int(np.sign(goal - paddle)) + 1)
    return np.array(actions)


@given(size=st.integers(3, 12), num_balls=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_following_the_ball_catches_all(size, num_balls, seed):
    env = CatchVectorEnv(4, size=size, num_balls=num_balls)
    frames, _ = env.reset(seed=seed)
    total = np.zeros(4)
    for step in range(num_balls * (size - 1)):
        frames, rewards, terminated, truncated, _ = env.step(follow(frames))
        total += rewards
        assert not truncated.any()
        assert terminated.all() == (step == num_balls * (size - 1) - 1)
    np.testing.assert_array_equal(total, num_balls)


def test_two_frames_tell_where_a_drifting_ball_lands():
    env = CatchVectorEnv(200, size=9, drift=True)
    frames, _ = env.reset(seed=0)
    before, single = frames, 0
    for _ in range(8):
        actions = follow(frames, before)
        before = frames
        frames, rewards, _, _, _ = env.step(actions)
        single += rewards.sum()
    # The centre is at most 4 columns from where it lands, and 7 steps remain after the second frame.
    assert single == 200


def test_every_column_is_caught_by_chance_once_in_a_while():
    # A paddle that stays catches the balls that fall above it: one column of ten.
    env = CatchVectorEnv(4000, size=10)
    env.reset(seed=0)
    for _ in range(9):
        _, rewards, _, _, _ = env.step(np.ones(4000, np.int64))
    caught = (rewards == 1).mean()
    assert abs(caught - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 4000)
    assert set(rewards.tolist()) == {-1.0, 1.0}


def test_the_step_after_an_end_begins_an_episode_whatever_the_action():
    env = CatchVectorEnv(3, size=4)
    env.reset(seed=0)
    for _ in range(3):
        frames, _, terminated, _, _ = env.step(np.array([0, 1, 2]))
    assert terminated.all()
    assert (frames[:, :3] == 0).all(), "the last frame of an episode shows the ball at the bottom"
    frames, rewards, terminated, truncated, _ = env.step(np.array([0, 1, 2]))
    assert (frames[:, 0].sum(-1) == 255).all()
    assert [p[2] for p in positions(frames)] == [2, 2, 2]
    assert not (rewards.any() or terminated.any() or truncated.any())


def test_a_new_ball_appears_at_once():
    env = CatchVectorEnv(2, size=4, num_balls=2)
    env.reset(seed=0)
    for _ in range(3):
        frames, rewards, terminated, _, _ = env.step(np.array([1, 1]))
    assert (np.abs(rewards) == 1).all()
    assert not terminated.any()
    assert (frames[:, 0].sum(-1) == 255).all()


@pytest.mark.parametrize("drift", [False, True])
def test_a_game_does_not_see_what_happens_in_the_others(drift):
    courses = []
    for others in (0, 2):
        env = CatchVectorEnv(3, size=5, num_balls=2, drift=drift)
        env.reset(seed=7)
        rng = np.random.default_rng(0)
        course = []
        for _ in range(40):
            action = rng.integers(3)
            frames, rewards, terminated, _, _ = env.step(np.array([others, action, others]))
            course.append((frames[1].tobytes(), rewards[1], terminated[1]))
        courses.append(course)
    assert courses[0] == courses[1]


def test_a_seed_decides_everything_and_another_something():
    courses = []
    for seed in (0, 0, 1):
        env = CatchVectorEnv(8, drift=True)
        frames = [env.reset(seed=seed)[0]]
        frames += [env.step(np.ones(8, np.int64))[0] for _ in range(30)]
        courses.append(np.stack(frames))
    np.testing.assert_array_equal(courses[0], courses[1])
    assert not np.array_equal(courses[0], courses[2])


def test_a_mask_resets_some_games_only():
    env = CatchVectorEnv(2, size=6)
    env.reset(seed=0)
    frames = env.step(np.array([1, 1]))[0]
    after, _ = env.reset(options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(after[0], frames[0])
    assert positions(after)[1][0] == 0


def test_returned_frames_are_not_written_again():
    env = CatchVectorEnv(2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.array([0, 2]))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("settings", [{}, {"size": 5, "num_balls": 2, "drift": True}])
def test_gymnasium_approves_of_it(settings):
    check_env(gymnasium.make("selftrain/Catch-v0", **settings).unwrapped)


def test_the_id_makes_the_vector_environment():
    env = gymnasium.make_vec("selftrain/Catch-v0", num_envs=3, size=7)
    assert isinstance(env, CatchVectorEnv)
    assert env.reset(seed=0)[0].shape == (3, 7, 7)


def test_the_single_environment_plays_as_the_vector_one():
    single, vector = CatchEnv(size=6), CatchVectorEnv(1, size=6)
    frame, _ = single.reset(seed=5)
    frames, _ = vector.reset(seed=5)
    for action in (0, 2, 2, 1, 0):
        np.testing.assert_array_equal(frame, frames[0])
        frame, reward, terminated, _, _ = single.step(action)
        frames, rewards, ends, _, _ = vector.step(np.array([action]))
        assert (reward, terminated) == (rewards[0], ends[0])


def test_an_episode_that_has_ended_needs_a_reset():
    env = CatchEnv(size=3)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("actions", [[0], [0, 3], [-1, 0], [0.0, 1.0], [[0, 1]]])
def test_actions_that_are_none_are_refused(actions):
    env = CatchVectorEnv(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        env.step(np.array(actions))


def test_a_step_before_any_reset_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded):
        CatchVectorEnv(1).step(np.array([0]))


@pytest.mark.parametrize("mask", [[True, False], np.array([1, 0]), np.array([True])])
def test_a_mask_of_another_kind_is_refused(mask):
    env = CatchVectorEnv(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


def test_a_mask_that_leaves_a_game_without_an_episode_is_refused():
    with pytest.raises(ValueError, match="reset all first"):
        CatchVectorEnv(2).reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize("settings", [{"size": 2}, {"num_balls": 0}])
def test_sizes_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CatchVectorEnv(1, **settings)
