"""The value agent: its update against tables worked out by hand, its fixed points, its state."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from tables import (
    NUM_STATES,
    batch_of,
    chain_values,
    observe_chain,
    q_table,
    table_agent,
)

from selftrain._core.config import from_dict, to_dict
from selftrain.ops import C51, HLGauss, Support, TwoHot
from selftrain.rl import DQN, DQNConfig

# Five sigma or more between the chain's values, -1.4 to 1, and the bounds.
SUPPORT = Support(-4.0, 4.0, 51)
HEADS = {"mse": None, "hl_gauss": HLGauss(SUPPORT), "two_hot": TwoHot(SUPPORT), "c51": C51(SUPPORT)}
ONLINE = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]])
TARGET = torch.tensor([[5.0, 4.0], [-2.0, 1.0], [2.0, 0.5]])
# States 0, 1, 2; the second terminates.
STATES, ACTIONS, REWARDS, DISCOUNTS, FOLLOWING = (
    [0, 1, 2],
    [1, 0, 0],
    [1.0, 2.0, -1.0],
    [0.9, 0.0, 0.81],
    [1, 2, 0],
)


def agent_of_tables(**settings):
    agent = table_agent(3, **settings)
    with torch.no_grad():
        agent.network.head.linear.weight.copy_(ONLINE.T)
        agent.target.model.head.linear.weight.copy_(TARGET.T)
    return agent


def small_batch():
    return batch_of(STATES, ACTIONS, REWARDS, DISCOUNTS, FOLLOWING, 3)


def test_targets_without_double_take_the_target_networks_best_action():
    losses = agent_of_tables(double=False).losses(small_batch())
    wanted = [1.0 + 0.9 * 1.0, 2.0, -1.0 + 0.81 * 5.0]
    torch.testing.assert_close(losses["targets"], torch.tensor(wanted))


def test_targets_with_double_value_the_online_networks_best_action_by_the_target_network():
    losses = agent_of_tables(double=True).losses(small_batch())
    # The best actions of states 1 and 0 online are 0 and 1.
    wanted = [1.0 + 0.9 * -2.0, 2.0, -1.0 + 0.81 * 4.0]
    torch.testing.assert_close(losses["targets"], torch.tensor(wanted))


def test_the_squared_error_and_its_gradient_are_those_of_the_table():
    agent = agent_of_tables(double=False)
    losses = agent.losses(small_batch())
    values = np.array([2.0, 0.5, 0.0])
    error = values - np.array([1.9, 2.0, 3.05])
    np.testing.assert_allclose(losses["td"].detach(), error**2, rtol=1e-5)
    losses["td"].sum().backward()
    wanted = np.zeros((2, 3))
    wanted[ACTIONS, STATES] = 2 * error
    np.testing.assert_allclose(agent.network.head.linear.weight.grad, wanted, rtol=1e-5, atol=1e-6)


def test_a_categorical_gradient_is_the_softmax_less_the_targets_code():
    transform = HLGauss(SUPPORT)
    agent = table_agent(3, head=transform)
    losses = agent.losses(small_batch())
    losses["td"].sum().backward()
    probs = torch.softmax(losses["logits"].detach(), -1) - transform.encode(losses["targets"])
    grad = agent.network.head.linear.weight.grad.view(2, 51, 3)
    for row, (state, action) in enumerate(zip(STATES, ACTIONS, strict=True)):
        torch.testing.assert_close(grad[action, :, state], probs[row], rtol=1e-4, atol=1e-6)


def test_a_c51_target_is_the_projected_distribution_of_the_target_network():
    agent = table_agent(3, head=C51(SUPPORT), double=False)
    losses = agent.losses(small_batch())
    atoms, step = np.linspace(-4, 4, 51), 8 / 50
    next_probs = torch.softmax(agent.target.model(torch.eye(3)).detach(), -1).numpy()
    log_probs = torch.log_softmax(losses["logits"].detach(), -1).numpy()
    for row, following in enumerate(FOLLOWING):
        best = (next_probs[following] @ atoms).argmax()
        moved = np.clip(REWARDS[row] + DISCOUNTS[row] * atoms, -4, 4)
        shares = np.clip(1 - np.abs(moved[:, None] - atoms) / step, 0, 1)
        target = next_probs[following, best] @ shares
        assert losses["td"][row].item() == pytest.approx(-(target * log_probs[row]).sum(), rel=1e-4)
        assert losses["targets"][row].item() == pytest.approx(
            REWARDS[row] + DISCOUNTS[row] * (next_probs[following, best] @ atoms), abs=1e-4
        )


@pytest.mark.parametrize("head", HEADS)
def test_no_gradient_reaches_the_target_network(head):
    agent = table_agent(3, head=HEADS[head])
    losses = agent.losses(small_batch())
    assert not losses["targets"].requires_grad
    losses["td"].sum().backward()
    assert all(p.grad is None for p in agent.target.model.parameters())
    assert all(p.grad is not None for p in agent.network.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_the_fixed_point_on_a_chain_is_the_table_of_optimal_values(head):
    # Logits have far to go; the squared error's gradients vanish, and Adam remembers large ones.
    rate = 0.01 if head == "mse" else 0.1
    agent = table_agent(head=HEADS[head], learning_rate=rate, adam_eps=1e-8, batch_size=32)
    observe_chain(agent)
    for step in range(2400):
        if step in (1600, 2000, 2200):
            for group in agent.optimizer.param_groups:
                group["lr"] /= 10
        agent.learn()
    np.testing.assert_allclose(q_table(agent), chain_values(), atol=1e-3)


def test_the_loss_is_the_mean_with_importance_weights():
    agent = table_agent(priority_exponent=0.5, importance_exponent=0.7)
    observe_chain(agent)
    agent.replay.update_priorities(torch.arange(0, 20, 2), torch.arange(1.0, 11.0))
    drawn = []
    sample = agent.replay.sample
    agent.replay.sample = lambda *args, **kwargs: drawn.append(sample(*args, **kwargs)) or drawn[0]
    before = agent.losses
    agent.losses = lambda batch: before(batch)
    loss = agent.learn()["loss/total"]
    weights = drawn[0].weights
    assert weights.min() < 0.9
    fresh = table_agent(priority_exponent=0.5, importance_exponent=0.7)
    wanted = (fresh.losses(drawn[0])["td"] * weights).mean()
    torch.testing.assert_close(loss, wanted.detach())


@pytest.mark.parametrize("head", HEADS)
def test_priorities_are_errors_of_values_and_losses_of_distributions(head):
    agent = table_agent(head=HEADS[head], priority_exponent=0.5)
    observe_chain(agent)
    given, losses = [], []
    agent.replay.update_priorities = lambda indices, priorities: given.append(priorities)
    compute = agent.losses
    agent.losses = lambda batch: losses.append(compute(batch)) or losses[0]
    agent.learn()
    found = losses[0]
    values = agent.network.head.value(found["logits"].detach())
    wanted = found["td"].detach() if head == "c51" else (values - found["targets"]).abs()
    torch.testing.assert_close(given[0], wanted, atol=2e-6, rtol=1e-5)


def test_the_target_network_is_a_copy_every_so_many_updates():
    agent = table_agent(target_every=3)
    observe_chain(agent)
    first = q_table(agent).copy()
    for update in range(1, 7):
        agent.learn()
        with torch.no_grad():
            target = agent.network.value(agent.target.model(torch.eye(NUM_STATES))).numpy()
        np.testing.assert_array_equal(target, q_table(agent) if update % 3 == 0 else first)
        first = target


def test_the_target_network_is_a_moving_average():
    agent = table_agent(target_every=None, target_decay=0.9)
    observe_chain(agent)
    before = agent.target.model.head.linear.weight.clone()
    agent.learn()
    wanted = 0.9 * before + 0.1 * agent.network.head.linear.weight
    torch.testing.assert_close(agent.target.model.head.linear.weight, wanted.detach())


def test_gradients_are_scaled_down_to_the_norm():
    agent = table_agent(max_grad_norm=1e-3)
    observe_chain(agent)
    agent.learn()
    norm = torch.cat([p.grad.flatten() for p in agent.network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_rewards_are_clipped_for_learning_only():
    agent = table_agent(reward_clip=1.0)
    no = np.zeros(3, dtype=bool)
    observations, rewards = np.eye(5, dtype=np.float32)[:3], np.array([-7.0, 0.5, 9.0])
    agent.observe(observations, np.zeros(3, int), rewards, ~no, no)
    batch = agent.replay.sample(60, rng=torch.Generator().manual_seed(0))
    assert set(batch.returns.tolist()) == {-1.0, 0.5, 1.0}
    assert rewards.tolist() == [-7.0, 0.5, 9.0]


def test_decay_shrinks_matrices_and_leaves_vectors():
    agent = table_agent(weight_decay=0.1, learning_rate=0.5)
    for p in agent.network.parameters():
        p.grad = torch.zeros_like(p)
    torch.nn.init.ones_(agent.network.head.linear.bias)
    weight = agent.network.head.linear.weight.clone()
    agent.optimizer.step()
    torch.testing.assert_close(agent.network.head.linear.weight, weight * 0.95)
    assert agent.network.head.linear.bias.tolist() == [1.0, 1.0]


def test_exploration_is_random_until_the_warmup_ends_and_falls_linearly():
    config = DQNConfig(warmup_steps=100, epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=400)
    found = [config.epsilon_at(step) for step in (0, 99, 100, 300, 500, 10_000)]
    assert found == pytest.approx([1.0, 1.0, 0.9, 0.5, 0.1, 0.1])


def test_updates_keep_their_ratio_to_steps_whatever_the_number_of_environments():
    config = DQNConfig(warmup_steps=100, update_every=4, updates_per_step=3)
    assert [config.updates_at(step) for step in (99, 100, 103, 104, 180)] == [0, 3, 3, 6, 63]


def test_the_share_of_random_actions_is_epsilon():
    agent = table_agent(epsilon_steps=0, epsilon_end=0.3)
    agent.num_env_steps = 10
    with torch.no_grad():
        agent.network.head.linear.weight[0] = 1.0
        agent.network.head.linear.weight[1] = 0.0
    observations = np.eye(5, dtype=np.float32)[np.zeros(1000, dtype=int)]
    chosen = np.concatenate([agent.act(observations) for _ in range(10)])
    assert chosen.mean() == pytest.approx(0.15, abs=0.015)  # 4 standard deviations
    assert agent.act(observations, greedy=True).sum() == 0


def test_acting_is_a_function_of_the_seed_and_of_what_was_done():
    observations = np.eye(5, dtype=np.float32)
    one, two, other = table_agent(), table_agent(), table_agent(seed=1)
    first = [one.act(observations).tolist() for _ in range(5)]
    assert first == [two.act(observations).tolist() for _ in range(5)]
    assert first != [other.act(observations).tolist() for _ in range(5)]


def test_building_an_agent_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    table_agent()
    assert torch.rand(1) == wanted


def test_a_stack_seen_while_acting_is_the_stack_that_is_replayed():
    rng = np.random.default_rng(0)
    space = gymnasium.spaces.Box(0, 255, (2, 3), np.uint8)
    agent = DQN(
        space,
        gymnasium.spaces.Discrete(2),
        DQNConfig(stack=3, capacity=10_000, num_steps=1),
    )
    seen, valid = [], np.ones(4, dtype=bool)
    stack = agent._stack_for(np.zeros((4, 2, 3), np.uint8))
    for step in range(60):
        frames = rng.integers(1, 255, (4, 2, 3), dtype=np.uint8)
        seen.append(stack.with_latest(frames))
        terminated, truncated = rng.random((2, 4)) < 0.15
        agent.observe(
            frames, np.zeros(4, int), np.full(4, step), terminated & valid, truncated & valid, valid
        )
        valid = ~((terminated | truncated) & valid)
    batch = agent.replay.sample(3000, discount=0.0, rng=torch.Generator().manual_seed(0))
    env = batch.indices % 4
    for row in range(3000):
        step = int(batch.returns[row])
        np.testing.assert_array_equal(batch.observations[row], seen[step][env[row]])


def test_what_was_saved_is_loaded_and_goes_on_the_same(tmp_path):
    settings = {"head": HEADS["hl_gauss"], "priority_exponent": 0.6, "target_every": 4}
    one, two = table_agent(**settings), table_agent(**settings)
    observe_chain(one)
    for _ in range(6):
        one.learn()
    one.act(np.eye(5, dtype=np.float32))
    one.save(tmp_path / "agent")
    two.load(tmp_path / "agent")
    for agent in (one, two):
        for _ in range(6):
            agent.learn()
    np.testing.assert_array_equal(q_table(one), q_table(two))
    assert one.act(np.eye(5, dtype=np.float32)).tolist() == two.act(np.eye(5)).tolist()
    assert (one.num_updates, one.num_env_steps) == (two.num_updates, two.num_env_steps)


def test_an_agent_is_not_loaded_with_other_settings(tmp_path):
    agent = table_agent()
    observe_chain(agent)
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"config.batch_size: 64 -> 32"):
        table_agent(batch_size=32).load(tmp_path / "agent")
    with pytest.raises(ValueError, match="head: 'None' -> 'HLGauss"):
        table_agent(head=HEADS["hl_gauss"]).load(tmp_path / "agent")
    with pytest.raises(FileNotFoundError, match="holds no agent"):
        agent.load(tmp_path / "nothing")


def test_what_is_measured_is_a_scalar_on_the_device():
    agent = table_agent(head=HEADS["two_hot"])
    observe_chain(agent)
    metrics = agent.learn(measure=True)
    assert {"loss/total", "value/target", "value/kl", "value/clip_fraction"} <= metrics.keys()
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("preset", ["small", "atari", "rainbow"])
def test_a_preset_goes_through_json(preset):
    config = getattr(DQNConfig, preset)()
    assert from_dict(DQNConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount": 1.5}, "discount"),
        ({"epsilon_end": -0.1}, "epsilon_end"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"target_every": 5}, "set one of them"),
        ({"target_decay": None}, "set one of them"),
        ({"target_decay": 1.0}, "target_decay"),
        ({"reward_clip": 0.0}, "reward_clip"),
        ({"warmup_steps": 100_000}, "warmup_steps is 100000"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DQNConfig(), **changes)


def test_spaces_that_do_not_fit_are_refused():
    box, two = gymnasium.spaces.Box(0, 1, (3,)), gymnasium.spaces.Discrete(2)
    with pytest.raises(TypeError, match="observation_space must be a Box"):
        DQN(two, two)
    with pytest.raises(TypeError, match="action_space must be Discrete"):
        DQN(box, box)
    with pytest.raises(TypeError, match="starts at 0"):
        DQN(box, gymnasium.spaces.Discrete(2, start=1))


def test_observations_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"observations must have shape \[environments, 5\]"):
        table_agent().act(np.zeros(5, np.float32))


def test_learning_from_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to learn from"):
        table_agent().learn()
