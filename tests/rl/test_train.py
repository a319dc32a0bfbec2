"""Training and evaluation: exact counts, fair episodes, and runs that go on as if never stopped."""

import json
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from games import FixedLengths
from gymnasium.vector import AutoresetMode

from selftrain.envs import CatchVectorEnv
from selftrain.errors import RunConflictError
from selftrain.ops import C51, HLGauss, Support
from selftrain.rl import DQN, DQNConfig, evaluate, train

SUPPORT = Support(-1.5, 1.5, 21)
SMALL = {"capacity": 400, "warmup_steps": 60, "batch_size": 8, "epsilon_steps": 100, "num_steps": 3}
QUIET = {"show_progress": False}


def catch_agent(*, head=None, **settings):
    env = CatchVectorEnv(3, size=5)
    config = DQNConfig(**{**SMALL, **settings})
    return DQN(env.single_observation_space, env.single_action_space, config, head=head)


def agent_for(env, **settings):
    config = DQNConfig(**{**SMALL, **settings})
    return DQN(env.single_observation_space, env.single_action_space, config)


def state_of(agent):
    """Return all tensors that an agent's future depends on, by name."""
    tensors = {f"network.{k}": v for k, v in agent.network.state_dict().items()}
    tensors |= {f"target.{k}": v for k, v in agent.target.model.state_dict().items()}
    tensors |= {f"replay.{k}": v for k, v in agent.replay.state_dict().items()}
    for i, parameter in enumerate(agent.network.parameters()):
        tensors |= {f"adam.{i}.{k}": v for k, v in agent.optimizer.state[parameter].items()}
    return tensors


def assert_same_agents(one, two):
    first, second = state_of(one), state_of(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name
    counters = ("num_env_steps", "num_updates", "epsilon")
    assert all(getattr(one, name) == getattr(two, name) for name in counters)


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("steps_per_second", None)
    return rows


HEADS = {"mse": {}, "hl_gauss": {"head": HLGauss(SUPPORT)}, "c51": {"head": C51(SUPPORT)}}


@pytest.mark.parametrize(
    ("settings", "kill_at"),
    [
        ({}, 40),
        ({"head": HLGauss(SUPPORT), "priority_exponent": 0.6, "stack": 2}, 75),
        ({"head": C51(SUPPORT), "target_decay": None, "target_every": 7, "dueling": True}, 110),
    ],
    ids=["mse", "hl_gauss_prioritised_stacked", "c51_copied_target_dueling"],
)
def test_a_killed_run_goes_on_as_if_never_stopped(settings, kill_at, tmp_path, monkeypatch):
    options = {"save_every": 200, "log_every": 50, "eval_every": 130, "num_eval_episodes": 4}

    def run(agent, folder):
        envs = CatchVectorEnv(3, size=5), CatchVectorEnv(2, size=5)
        return train(agent, envs[0], 700, eval_env=envs[1], output_dir=folder, **options, **QUIET)

    whole = catch_agent(**settings)
    result = run(whole, tmp_path / "whole")

    killed = catch_agent(**settings)
    learn = killed.learn

    def die(**kwargs):
        if killed.num_updates == kill_at:
            raise KeyboardInterrupt
        return learn(**kwargs)

    monkeypatch.setattr(killed, "learn", die)
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path / "killed")
    again = catch_agent(**settings)
    continued = run(again, tmp_path / "killed")
    assert_same_agents(whole, again)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "killed")
    assert [e.step for e in continued.evaluations] == [e.step for e in result.evaluations]
    observations = np.zeros((3, 5, 5), np.uint8)
    assert all((whole.act(observations) == again.act(observations)).all() for _ in range(20))


def test_a_run_killed_while_saving_continues_from_the_save_before(tmp_path, monkeypatch):
    options = {"save_every": 200, "log_every": 50}
    whole = catch_agent()
    train(whole, CatchVectorEnv(3, size=5), 500, output_dir=tmp_path / "whole", **options, **QUIET)
    killed, saves = catch_agent(), []

    def die(*args, **kwargs):
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("selftrain.rl.replay.ReplayBuffer.save", _after(die))
        with pytest.raises(KeyboardInterrupt):
            train(
                killed,
                CatchVectorEnv(3, size=5),
                500,
                output_dir=tmp_path / "killed",
                **options,
                **QUIET,
            )
    again = catch_agent()
    train(again, CatchVectorEnv(3, size=5), 500, output_dir=tmp_path / "killed", **options, **QUIET)
    assert_same_agents(whole, again)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "killed")


def _after(act):
    from selftrain.rl.replay import ReplayBuffer

    save = ReplayBuffer.save

    def wrapped(self, path):
        act()
        save(self, path)

    return wrapped


def test_a_run_that_writes_nothing_learns_the_same(tmp_path):
    one, two = catch_agent(), catch_agent()
    train(one, CatchVectorEnv(3, size=5), 400, save_every=150, **QUIET)
    train(two, CatchVectorEnv(3, size=5), 400, save_every=150, output_dir=tmp_path / "run", **QUIET)
    assert_same_agents(one, two)


def test_a_finished_run_trains_nothing_and_returns_what_it_gave(tmp_path):
    options = {"output_dir": tmp_path / "run", "eval_every": 150, "num_eval_episodes": 3, **QUIET}
    env, eval_env = CatchVectorEnv(3, size=5), CatchVectorEnv(2, size=5)
    first = train(catch_agent(), env, 300, eval_env=eval_env, **options)
    agent = catch_agent()
    agent.learn = None  # not called
    second = train(agent, env, 300, eval_env=eval_env, **options)
    assert second.rows == first.rows
    for one, two in zip(first.evaluations, second.evaluations, strict=True):
        assert one.step == two.step
        np.testing.assert_array_equal(one.evaluation.returns, two.evaluation.returns)


def test_a_finished_run_can_be_made_longer(tmp_path):
    env = CatchVectorEnv(3, size=5)
    train(catch_agent(), env, 300, output_dir=tmp_path / "run", **QUIET)
    agent = catch_agent()
    train(agent, env, 450, output_dir=tmp_path / "run", **QUIET)
    assert 450 <= agent.num_env_steps < 453


def test_a_folder_is_not_continued_with_other_settings(tmp_path):
    env = CatchVectorEnv(3, size=5)
    train(catch_agent(), env, 100, output_dir=tmp_path / "run", **QUIET)
    with pytest.raises(RunConflictError, match="batch_size: 8 -> 16"):
        train(catch_agent(batch_size=16), env, 200, output_dir=tmp_path / "run", **QUIET)


def test_steps_spent_on_resets_are_neither_counted_nor_drawn():
    env = FixedLengths([2, 5])
    agent = agent_for(env)
    train(agent, env, 40, save_every=1000, **QUIET)
    # Of 3 steps the first environment makes 2, of 6 the second makes 5: 9 in 6 of both.
    assert agent.num_env_steps == 40
    batch = agent.replay.sample(500, num_steps=1, rng=torch.Generator().manual_seed(0))
    assert (batch.returns == 1.0).all()
    ended = batch.discounts == 0
    last = torch.where(batch.indices % 2 == 0, 1.0, 4.0)
    assert (ended == (batch.observations[:, 0] == last)).all()


def test_what_a_save_cuts_off_is_truncated_and_goes_on_from_its_last_observation():
    env = FixedLengths([100])
    agent = agent_for(env)
    train(agent, env, 30, save_every=10, **QUIET)
    assert len(env.seeds) == 3
    batch = agent.replay.sample(
        500, num_steps=3, discount=0.5, rng=torch.Generator().manual_seed(0)
    )
    at, following = batch.observations[:, 0], batch.next_observations[:, 0]
    steps = torch.minimum(torch.full_like(at, 3), 10 - at)
    torch.testing.assert_close(following, at + steps)
    torch.testing.assert_close(batch.discounts, 0.5**steps)
    torch.testing.assert_close(batch.returns, 2 - 0.5 ** (steps - 1))
    assert set(at.tolist()) == set(range(10))


def test_truncated_episodes_count_on_their_last_value_and_terminated_ones_do_not():
    for terminate in (True, False):
        env = FixedLengths([4], terminate=terminate)
        agent = agent_for(env)
        train(agent, env, 30, **QUIET)
        batch = agent.replay.sample(200, rng=torch.Generator().manual_seed(0))
        last = batch.observations[:, 0] == 3
        assert last.any()
        assert (batch.discounts[last] == (0.0 if terminate else np.float32(0.99))).all()
        assert (batch.next_observations[last] == 4).all()


def test_the_number_of_updates_is_that_of_the_settings():
    for num_envs in (1, 7):
        env = FixedLengths([10] * num_envs)
        agent = agent_for(env, warmup_steps=60, update_every=5, updates_per_step=2)
        train(agent, env, 200, **QUIET)
        assert agent.num_updates == 2 * (1 + (agent.num_env_steps - 60) // 5)


def test_rows_tell_the_mean_return_of_the_episodes_that_ended():
    env = FixedLengths([2, 5])
    result = train(agent_for(env), env, 90, log_every=30, **QUIET)
    ended = sum(row["num_episodes"] for row in result.rows)
    total = sum(row["num_episodes"] * row.get("episode_return", 0.0) for row in result.rows)
    # 90 steps: 10 times 6 steps of both, in which 2 short and 1 long episodes end.
    assert (ended, total) == (30, 20 * 2 + 10 * 5)
    assert [row["step"] for row in result.rows] == [30, 60, 90]


def test_an_evaluation_counts_every_episode_once_whatever_its_length():
    env = FixedLengths([1, 9])
    found = evaluate(agent_for(env), env, 6)
    assert found.returns.tolist() == [1, 9, 1, 9, 1, 9]
    assert found.lengths.tolist() == [1, 9, 1, 9, 1, 9]
    assert found.mean == 5.0
    assert evaluate(agent_for(env), env, 3).returns.tolist() == [1, 9, 1]


def test_an_episode_is_cut_off_at_the_limit():
    env = FixedLengths([2, 50])
    found = evaluate(agent_for(env), env, 2, max_episode_steps=7)
    assert found.lengths.tolist() == [2, 7]


def test_an_evaluation_depends_on_its_seed_and_changes_nothing():
    env, agent = CatchVectorEnv(4, size=5), catch_agent()
    train(agent, CatchVectorEnv(3, size=5), 200, **QUIET)
    before = {name: tensor.clone() for name, tensor in state_of(agent).items()}
    first = evaluate(agent, env, 40, seed=1, epsilon=0.5).returns.tolist()
    assert first == evaluate(agent, env, 40, seed=1, epsilon=0.5).returns.tolist()
    assert first != evaluate(agent, env, 40, seed=2, epsilon=0.5).returns.tolist()
    assert all(tensor.equal(before[name]) for name, tensor in state_of(agent).items())


def test_evaluations_come_at_their_steps_and_at_the_end():
    env = CatchVectorEnv(3, size=5)
    result = train(
        catch_agent(), env, 250, eval_env=CatchVectorEnv(2, size=5), eval_every=100, **QUIET
    )
    steps = [e.step for e in result.evaluations]
    assert len(steps) == 3
    assert all(0 <= at - wanted < 3 for at, wanted in zip(steps, [100, 200, 250], strict=True))


def test_environments_that_reset_at_once_are_refused():
    class AtOnce(FixedLengths):
        metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP}

    env = AtOnce([3])
    with pytest.raises(ValueError, match=r"gymnasium\.make_vec"):
        train(agent_for(env), env, 10, **QUIET)


def test_an_encoder_is_chosen_by_the_observations():
    def encoder(shape, dtype=np.float32, **settings):
        space = gymnasium.spaces.Box(0, 1 if dtype != np.uint8 else 255, shape, dtype)
        config = DQNConfig(**settings)
        return type(DQN(space, gymnasium.spaces.Discrete(2), config).network.encoder).__name__

    assert encoder((4,)) == "MLPEncoder"
    assert encoder((10, 10), np.uint8) == "MLPEncoder"
    assert encoder((84, 84), np.uint8, stack=4) == "NatureEncoder"
    with pytest.raises(ValueError, match="no default encoder"):
        encoder((84, 84, 3), np.uint8)
