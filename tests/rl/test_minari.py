"""Logged data in Minari's format: what Minari writes is what comes back."""

import warnings

import gymnasium as gym
import numpy as np
import pytest

from selftrain.errors import MissingExtraError
from selftrain.rl.minari import load_minari

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)


def buffers(lengths=(4, 1, 6), first_action=0, ends=("terminated", "truncated", "cut")):
    data_collector = pytest.importorskip("minari.data_collector", reason="needs the extra minari")
    rng = np.random.default_rng(0)
    return [
        data_collector.EpisodeBuffer(
            observations=list(rng.normal(size=(num + 1, 3))),
            actions=list(first_action + rng.integers(4, size=num)),
            rewards=list(rng.normal(size=num)),
            terminations=[False] * (num - 1) + [end == "terminated"],
            truncations=[False] * (num - 1) + [end == "truncated"],
        )
        for num, end in zip(lengths, ends, strict=True)
    ]


def write(tmp_path, monkeypatch, episodes, **spaces):
    minari = pytest.importorskip("minari", reason="needs the extra minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    defaults = {"observation_space": BOX, "action_space": gym.spaces.Discrete(4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of metadata that a test does not need
        minari.create_dataset_from_buffers(
            "test/log-v0",
            episodes,
            data_format=spaces.pop("data_format", "arrow"),
            **defaults | spaces,
        )
    return tmp_path / "test" / "log-v0"


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_episodes_come_back_as_minari_wrote_them(tmp_path, monkeypatch, data_format):
    if data_format == "hdf5":
        pytest.importorskip("h5py", reason="needs the extra minari")
    written = buffers()
    folder = write(tmp_path, monkeypatch, written, data_format=data_format)
    for path in (folder, folder / "data"):
        read = load_minari(path)
        assert [len(e) for e in read] == [4, 1, 6]
        for ours, theirs in zip(read, written, strict=True):
            np.testing.assert_array_equal(ours.observations, np.float32(theirs.observations))
            np.testing.assert_array_equal(ours.actions, theirs.actions)
            np.testing.assert_array_equal(ours.rewards, np.float32(theirs.rewards))
    ends = [(e.terminated, e.truncated) for e in read]
    assert ends == [(True, False), (False, True), (False, True)]
    assert [len(e) for e in load_minari(folder, max_episodes=2)] == [4, 1]


def test_actions_are_numbered_from_zero(tmp_path, monkeypatch):
    written = buffers(first_action=5)
    space = gym.spaces.Discrete(4, start=5)
    folder = write(tmp_path, monkeypatch, written, action_space=space)
    read = load_minari(folder)
    assert read[0].actions.tolist() == [a - 5 for a in written[0].actions]


def test_continuous_actions_are_refused(tmp_path, monkeypatch):
    (episode,) = buffers(lengths=(2,), ends=("terminated",))
    episode = episode.__class__(**vars(episode) | {"actions": [np.zeros(2)] * 2})
    space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    folder = write(tmp_path, monkeypatch, [episode], action_space=space)
    with pytest.raises(ValueError, match="must be discrete"):
        load_minari(folder)


def test_an_episode_that_goes_on_after_its_end_is_refused(tmp_path, monkeypatch):
    (episode,) = buffers(lengths=(3,), ends=("terminated",))
    episode.terminations[0] = True
    folder = write(tmp_path, monkeypatch, [episode])
    with pytest.raises(ValueError, match="ends at step 0 and goes on to step 2"):
        load_minari(folder)


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    pytest.importorskip("minari", reason="needs the extra minari")
    with pytest.raises(FileNotFoundError, match=r"no data/metadata\.json"):
        load_minari(tmp_path)


def test_without_minari_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(MissingExtraError, match=r"selftrain\[minari\]"):
        load_minari(tmp_path)
