import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import everything

from selftrain.rl import Episode, ReplayBuffer, load_episodes, save_episodes


def episode(num_steps, *, seed=0, terminated=True, truncated=False, shape=(2,)):
    rng = np.random.default_rng(seed)
    return Episode(
        observations=rng.integers(1, 255, (num_steps + 1, *shape)).astype(np.uint8),
        actions=rng.integers(0, 4, num_steps),
        rewards=rng.normal(size=num_steps),
        terminated=terminated,
        truncated=truncated,
    )


MIXED = [
    episode(3, seed=1),
    episode(1, seed=2, terminated=False, truncated=True),
    episode(5, seed=3, terminated=False),
]


def test_episodes_come_back_from_a_file(tmp_path):
    save_episodes(tmp_path / "log.safetensors", MIXED)
    for mine, theirs in zip(MIXED, load_episodes(tmp_path / "log.safetensors"), strict=True):
        assert np.array_equal(mine.observations, theirs.observations)
        assert np.array_equal(mine.actions, theirs.actions)
        assert np.array_equal(mine.rewards.astype(np.float32), theirs.rewards)
        assert (mine.terminated, mine.truncated) == (theirs.terminated, theirs.truncated)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=5))
def test_a_buffer_of_episodes_draws_every_step_with_what_follows_it(kinds):
    episodes = [
        episode(num, seed=i, terminated=kind == 0, truncated=kind == 1)
        for i, (num, kind) in enumerate(kinds)
    ]
    buffer = ReplayBuffer.from_episodes([*episodes, episode(4, seed=99)])
    batch = everything(buffer, num_steps=2, discount=0.5)
    drawn = dict(zip(batch.indices.tolist(), range(len(batch.indices)), strict=True))
    start = 0
    for log in episodes:
        for step in range(len(log)):
            i, last = drawn[start + step], min(step + 2, len(log))
            over = last == len(log) and log.terminated
            rewards = log.rewards[step:last]
            expected = sum(0.5**j * r for j, r in enumerate(rewards))
            assert np.array_equal(batch.observations[i], log.observations[step])
            assert np.array_equal(batch.next_observations[i], log.observations[last])
            assert batch.returns[i].item() == pytest.approx(expected, abs=1e-5)
            assert batch.discounts[i].item() == (0.0 if over else 0.5 ** (last - step))
            logged = log.actions[last] if last < len(log) else -1
            assert batch.next_actions[i] == (0 if over else logged)
        start += len(log) + 1
    assert len(drawn) == sum(len(log) for log in episodes) + 4


def test_appending_breaks_off_an_episode_that_is_running():
    buffer = ReplayBuffer((2,), capacity=40)
    for step in range(3):
        buffer.add(np.full((1, 2), step, np.uint8), [0], [0.0], [False], [False])
    buffer.append_episodes([episode(4)])
    assert set(everything(buffer).indices.tolist()) == {0, 1, 3, 4, 5, 6}


def test_appended_episodes_wrap_around():
    buffer = ReplayBuffer((2,), capacity=12)
    logs = [episode(4, seed=i) for i in range(5)]
    buffer.append_episodes(logs)
    batch = everything(buffer)
    assert (len(buffer), buffer.num_added) == (12, 25)
    assert set(batch.indices.tolist()) == {13, 15, 16, 17, 18, 20, 21, 22, 23}
    for i, index in enumerate(batch.indices.tolist()):
        assert np.array_equal(batch.observations[i], logs[index // 5].observations[index % 5])


def test_double_precision_logs_can_be_kept_in_single():
    log = Episode(np.zeros((3, 2)), np.zeros(2, int), np.ones(2), True, False)
    assert ReplayBuffer.from_episodes([log]).dtype == torch.float64
    buffer = ReplayBuffer.from_episodes([log], dtype=torch.float32)
    assert buffer.sample(1).observations.dtype == torch.float32


def test_the_return_is_the_sum_of_the_rewards():
    assert MIXED[0].episode_return == pytest.approx(MIXED[0].rewards.sum())
    assert len(MIXED[0]) == 3


def test_lengths_that_do_not_belong_together_are_refused():
    log = MIXED[0]
    for change in ({"observations": log.observations[:-1]}, {"rewards": log.rewards[1:]}):
        fields = {name: getattr(log, name) for name in Episode.__dataclass_fields__}
        with pytest.raises(ValueError, match=r"T actions and rewards and T \+ 1 observations"):
            Episode(**{**fields, **change})
    with pytest.raises(ValueError, match="actions must be integers, got float64"):
        Episode(log.observations, log.rewards, log.rewards, True, False)


def test_files_of_other_things_are_refused(tmp_path):
    ReplayBuffer.from_episodes(MIXED).save(tmp_path / "replay.safetensors")
    with pytest.raises(ValueError, match="holds no episodes"):
        load_episodes(tmp_path / "replay.safetensors")
    save_episodes(tmp_path / "log.safetensors", MIXED)
    with pytest.raises(ValueError, match="holds no replay buffer"):
        ReplayBuffer.load(tmp_path / "log.safetensors")
    (tmp_path / "torn").write_bytes((tmp_path / "log.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole file of episodes"):
        load_episodes(tmp_path / "torn")


def test_episodes_that_do_not_fit_are_refused(tmp_path):
    other = episode(3, shape=(3,))
    with pytest.raises(ValueError, match="one shape and type"):
        save_episodes(tmp_path / "log", [MIXED[0], other])
    with pytest.raises(ValueError, match=r"observations must be \[4, 2\]"):
        ReplayBuffer.from_episodes([MIXED[0], other])
    with pytest.raises(ValueError, match="episodes is empty"):
        ReplayBuffer.from_episodes([])
    with pytest.raises(ValueError, match="does not fit a capacity of 3"):
        ReplayBuffer((2,), capacity=3).append_episodes([MIXED[0]])
    with pytest.raises(ValueError, match="make it with num_envs=1"):
        ReplayBuffer((2,), capacity=30, num_envs=2).append_episodes(MIXED)
    with pytest.raises(TypeError, match=r"observations are torch\.uint8"):
        ReplayBuffer((2,), capacity=30, dtype=torch.float32).append_episodes(MIXED)
