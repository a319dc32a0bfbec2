"""Conservative Q-learning: fixed points of each target, limits of the penalty, exact resuming."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import nn

from selftrain.errors import RunConflictError
from selftrain.nn.q_network import QNetwork, value_head
from selftrain.ops import C51, HLGauss, Support, TwoHot
from selftrain.rl.batch import Batch
from selftrain.rl.episodes import Episode
from selftrain.rl.offline import CQL
from selftrain.rl.offline_config import CQLConfig
from selftrain.rl.replay import ReplayBuffer

NUM_STATES, NUM_ACTIONS, DISCOUNT = 5, 3, 0.5
SUPPORT = Support(-3.0, 3.0, 41)
HEADS = {
    "scalar": None,
    "hl_gauss": HLGauss(SUPPORT),
    "two_hot": TwoHot(SUPPORT),
    "c51": C51(SUPPORT),
}


class Table(nn.Module):
    """Features that tell the states apart."""

    num_features = NUM_STATES

    def forward(self, states):
        return nn.functional.one_hot(states.long().flatten(), NUM_STATES).float()


def table(transform=None, seed=0):
    torch.manual_seed(seed)
    return QNetwork(Table(), NUM_ACTIONS, value_head(transform))


def episodes(num=40, seed=0):
    """Walks over random transitions; the policy that walks prefers some actions; some are cut."""
    rng = np.random.default_rng(seed)
    next_state = rng.integers(NUM_STATES, size=(NUM_STATES, NUM_ACTIONS, 2))
    reward = rng.uniform(-0.5, 0.5, size=(NUM_STATES, NUM_ACTIONS, 2))
    policy = rng.dirichlet(np.ones(NUM_ACTIONS), size=NUM_STATES)
    found = []
    for _ in range(num):
        states, actions, rewards = [0], [], []
        terminated = False
        while not terminated and len(actions) < 6:
            s, chance = states[-1], rng.integers(2)
            actions.append(rng.choice(NUM_ACTIONS, p=policy[s]))
            rewards.append(reward[s, actions[-1], chance])
            states.append(next_state[s, actions[-1], chance])
            terminated = states[-1] == NUM_STATES - 1
        arrays = np.array(states)[:, None], np.array(actions), np.array(rewards, np.float32)
        found.append(Episode(*arrays, terminated=terminated, truncated=not terminated))
    assert any(e.terminated for e in found)
    assert any(e.truncated for e in found)
    return found


def rows(logged):
    """All transitions: state, action, reward, next state, next action or -1, discount."""
    return [
        (
            int(e.observations[t, 0]),
            int(e.actions[t]),
            float(e.rewards[t]),
            int(e.observations[t + 1, 0]),
            int(e.actions[t + 1]) if t + 1 < len(e) else (0 if e.terminated else -1),
            0.0 if e.terminated and t + 1 == len(e) else DISCOUNT,
        )
        for e in logged
        for t in range(len(e))
    ]


def whole_batch(transitions):
    s, a, r, s2, a2, d = (torch.tensor(column) for column in zip(*transitions, strict=True))
    return Batch(
        observations=s[:, None],
        actions=a,
        returns=r.float(),
        discounts=d.float(),
        next_observations=s2[:, None],
        next_actions=a2,
        weights=torch.ones(len(s)),
        indices=torch.arange(len(s)),
    )


def fixed_point(transitions, value_of_next):
    """Iterate the mean of what the transitions of each state and action say, in float64."""
    q = np.zeros((NUM_STATES, NUM_ACTIONS))
    for _ in range(500):
        sums, counts = np.zeros_like(q), np.zeros_like(q)
        for s, a, r, s2, a2, d in transitions:
            if d == 0.0 or value_of_next(q, s2, a2) is not None:
                sums[s, a] += r + (d and d * value_of_next(q, s2, a2))
                counts[s, a] += 1
        q = np.where(counts > 0, sums / np.maximum(counts, 1), q)
    return q, counts > 0


def learned_values(learner):
    with torch.no_grad():
        states = torch.arange(NUM_STATES)[:, None]
        return learner.network.value(learner.network(states)).double().numpy()


def minimise(learner, batch, num_copies=1):
    """Find the minimum of the loss for each of several target networks, and the values there.

    Tables make the problem convex, or close to it, so that there is one minimum to find.
    """
    config, parameters = learner.config, list(learner.network.parameters())
    for _ in range(num_copies):
        learner.target_network.load_state_dict(learner.network.state_dict())
        optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            losses = learner.losses(batch)
            total = (config.td_coef * losses["td"] + config.alpha * losses["penalty"]).mean()
            total.backward()
            return total

        optimizer.step(closure)
    return learned_values(learner)


@pytest.mark.parametrize("head", HEADS)
def test_sarsa_converges_to_the_values_of_the_policy_that_logged(head):
    transitions = rows(episodes())
    learner = CQL(table(HEADS[head]), CQLConfig(target="sarsa", alpha=0.0))
    q = minimise(learner, whole_batch(transitions), 12)
    expected, seen = fixed_point(transitions, lambda q, s, a: None if a < 0 else q[s, a])
    np.testing.assert_allclose(q[seen], expected[seen], atol=3e-3)


@pytest.mark.parametrize("head", HEADS)
def test_q_learning_converges_to_the_best_values_under_the_transitions_of_the_data(head):
    """Actions that are not in the data would keep their first values: give each one transition."""
    known = [(s, a, -1.0, 0, 0, 0.0) for s in range(NUM_STATES) for a in range(NUM_ACTIONS)]
    transitions = rows(episodes()) + known
    learner = CQL(table(HEADS[head]), CQLConfig(alpha=0.0, double=False))
    q = minimise(learner, whole_batch(transitions), 12)
    expected, seen = fixed_point(transitions, lambda q, s, a: q[s].max())
    assert seen.all()
    np.testing.assert_allclose(q, expected, atol=3e-3)


def test_monte_carlo_learns_the_discounted_rest_of_each_return():
    walk = np.arange(NUM_STATES)[:, None]
    rewards, actions = np.float32([1.0, -0.5, 0.25, 2.0]), np.array([0, 2, 1, 1])
    logged = [Episode(walk, actions, rewards, terminated=True, truncated=False)]
    settings = {"learning_rate": 0.05, "num_updates": 250, "batch_size": 16}
    config = CQLConfig(target="monte_carlo", alpha=0.0, discount=DISCOUNT, **settings)
    learner = CQL(table(), config)
    learner.fit(logged)
    expected = [sum(DISCOUNT**k * r for k, r in enumerate(rewards[t:])) for t in range(4)]
    np.testing.assert_allclose(learned_values(learner)[range(4), actions], expected, atol=5e-3)


BANDIT = [(0, 0, 1.0)] * 6 + [(0, 1, 0.0)] * 3 + [(0, 2, 2.0)]  # frequencies 0.6, 0.3, 0.1


def bandit_batch():
    return whole_batch([(s, a, r, 0, 0, 0.0) for s, a, r in BANDIT])


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_the_fixed_point_of_a_bandit_balances_the_error_and_the_penalty(alpha):
    frequency, reward = np.array([0.6, 0.3, 0.1]), np.array([1.0, 0.0, 2.0])

    def gradient(q):
        soft = np.exp(q - q.max()) / np.exp(q - q.max()).sum()
        return 2 * frequency * (q - reward) + alpha * (soft - frequency)

    expected = root(gradient, reward, tol=1e-12).x
    q = minimise(CQL(table(), CQLConfig(alpha=alpha)), bandit_batch())
    np.testing.assert_allclose(q[0], expected, atol=1e-3)


def test_the_penalty_alone_clones_the_policy_that_logged():
    config = CQLConfig(alpha=1.0, td_coef=0.0)
    q = minimise(CQL(table(HEADS["hl_gauss"]), config), bandit_batch())
    np.testing.assert_allclose(torch.tensor(q[0]).softmax(0), [0.6, 0.3, 0.1], atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_a_strong_penalty_orders_actions_by_how_often_they_were_taken(head):
    """Without it the best action is the rarest, which paid most."""
    free = minimise(CQL(table(HEADS[head]), CQLConfig(alpha=0.0)), bandit_batch())
    bound = minimise(CQL(table(HEADS[head]), CQLConfig(alpha=100.0)), bandit_batch())
    assert np.argsort(-free[0]).tolist() == [2, 0, 1]
    assert np.argsort(-bound[0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_step_is_one_of_dqn_and_the_penalty(double, alpha):
    """The update written out, for the scalar head: equal weights after five steps."""
    network, batch = table(), whole_batch(rows(episodes()))
    online, target = copy.deepcopy(network), copy.deepcopy(network)
    optimizer = torch.optim.Adam(online.parameters(), lr=3e-4)
    learner = CQL(network, CQLConfig(alpha=alpha, double=double, target_every=2))
    each = torch.arange(len(batch.actions))
    for step in range(5):
        learner.step(batch)
        with torch.no_grad():
            next_q = target(batch.next_observations)[..., 0]
            chooser = online(batch.next_observations)[..., 0] if double else next_q
            y = batch.returns + batch.discounts * next_q[each, chooser.argmax(1)]
        q = online(batch.observations)[..., 0]
        loss = (q[each, batch.actions] - y).square().mean()
        loss = loss + alpha * nn.functional.cross_entropy(q, batch.actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 2 == 1:
            target.load_state_dict(online.state_dict())
    for ours, theirs in zip(network.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_no_gradient_reaches_the_target_network(head):
    learner = CQL(table(HEADS[head]), CQLConfig())
    losses = learner.losses(whole_batch(rows(episodes())))
    (losses["td"] + losses["penalty"]).sum().backward()
    assert not losses["targets"].requires_grad
    assert all(p.grad is None for p in learner.target_network.parameters())
    assert all(p.grad is not None for p in learner.network.parameters())


def test_importance_weights_scale_the_losses():
    batch = bandit_batch()
    config = CQLConfig(alpha=0.0)
    alone, weighted = (CQL(table(), config) for _ in range(2))
    alone.step(_with(batch, weights=torch.full((10,), 2.0)))
    total = weighted.step(_with(batch, weights=torch.tensor([4.0] * 5 + [0.0] * 5)))["loss/total"]
    td = CQL(table(), config).losses(batch)["td"]
    torch.testing.assert_close(total, 4 * td[:5].sum() / 10)


def _with(batch, **changes):
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return Batch(**values | changes)


def odd_actions_only(observations):
    """Action 1 is the only one; in the last state there is none."""
    legal = torch.zeros(len(observations), NUM_ACTIONS, dtype=torch.bool)
    legal[:, 1] = observations[:, 0] != NUM_STATES - 1
    return legal


@pytest.mark.parametrize("head", HEADS)
def test_actions_that_are_not_legal_are_neither_chosen_nor_valued(head):
    transitions = [(0, 1, 0.3, 1, 0, DISCOUNT), (1, 1, 0.5, NUM_STATES - 1, 0, 0.0)]
    learner = CQL(table(HEADS[head]), CQLConfig(), legal=odd_actions_only)
    batch = whole_batch(transitions)
    torch.testing.assert_close(learner.losses(batch)["penalty"], torch.zeros(2))
    q = minimise(learner, batch, 3)
    np.testing.assert_allclose(q[:2, 1], [0.3 + DISCOUNT * 0.5, 0.5], atol=3e-3)
    assert learner.choose(np.arange(4)[:, None]).tolist() == [1, 1, 1, 1]


def test_random_actions_are_legal_and_as_frequent_as_asked_for():
    learner = CQL(
        table(), CQLConfig(), legal=lambda o: torch.tensor([[True, False, True]] * len(o))
    )
    states = np.zeros((4000, 1), np.int64)
    (best,) = np.unique(learner.choose(states))
    drawn = learner.choose(states, epsilon=0.5, rng=torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 2}
    assert abs((drawn != best).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_fit_goes_on_after_an_interruption_to_the_same_weights(tmp_path):
    config = CQLConfig(num_updates=30, log_every=4, save_every=7, target_every=5, eval_every=10)
    logged = episodes()
    whole = CQL(table(HEADS["hl_gauss"]), config)
    expected = whole.fit(logged, output_dir=tmp_path / "whole", evaluate=lambda _: {"score": 1.0})

    def stop(learner):
        if learner.num_updates == 20:
            raise KeyboardInterrupt
        return {"score": 1.0}

    with pytest.raises(KeyboardInterrupt):
        CQL(table(HEADS["hl_gauss"]), config).fit(
            logged, output_dir=tmp_path / "cut", evaluate=stop
        )
    again = CQL(table(HEADS["hl_gauss"], seed=9), config)
    got = again.fit(logged, output_dir=tmp_path / "cut", evaluate=lambda _: {"score": 1.0})
    assert again.num_updates == 30
    for ours, theirs in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert got == expected
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 10, 12, 16, 20, 24, 28, 30]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    config = CQLConfig(num_updates=3)
    first = CQL(table(), config)
    first.fit(episodes(), output_dir=tmp_path)
    again = CQL(table(seed=5), config)
    again.fit(episodes(), output_dir=tmp_path)
    assert torch.equal(next(again.network.parameters()), next(first.network.parameters()))


def test_a_folder_of_another_run_is_refused(tmp_path):
    CQL(table(), CQLConfig(num_updates=3)).fit(episodes(), output_dir=tmp_path)
    with pytest.raises(RunConflictError, match="alpha"):
        CQL(table(), CQLConfig(num_updates=3, alpha=0.5)).fit(episodes(), output_dir=tmp_path)
    with pytest.raises(RunConflictError, match="transitions"):
        CQL(table(), CQLConfig(num_updates=3)).fit(episodes(num=41), output_dir=tmp_path)


def test_a_replay_file_is_learned_from_like_the_episodes_in_it(tmp_path):
    ReplayBuffer.from_episodes(episodes()).save(tmp_path / "log.safetensors")
    config = CQLConfig(num_updates=5)
    a, b = CQL(table(), config), CQL(table(), config)
    a.fit(episodes())
    b.fit(ReplayBuffer.load(tmp_path / "log.safetensors"))
    assert torch.equal(next(a.network.parameters()), next(b.network.parameters()))


def test_metrics_tell_how_far_the_best_actions_are_from_those_in_the_data():
    learner = CQL(table(HEADS["hl_gauss"]), CQLConfig(alpha=0.0))
    batch = bandit_batch()
    minimise(learner, batch)
    metrics = learner.measure(batch)
    assert metrics["value/greedy"] == pytest.approx(2.0, abs=0.02)
    assert metrics["value/data"] == pytest.approx(0.6 * 1.0 + 0.1 * 2.0, abs=0.02)
    assert metrics["agreement"] == pytest.approx(0.1)
    assert metrics["target/clip_fraction"] == 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "td"}, "target must be one of"),
        ({"alpha": -0.1}, "alpha must satisfy"),
        ({"discount": 1.1}, "discount must satisfy"),
        ({"learning_rate": 0.0}, "learning_rate must satisfy"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must satisfy"),
        ({"batch_size": 0}, "batch_size must satisfy"),
        ({"alpha": 0.0, "td_coef": 0.0}, "nothing to learn"),
        ({"target": "monte_carlo", "num_steps": 3}, "num_steps must be 1"),
    ],
)
def test_bad_settings_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        CQLConfig(**change)


def test_data_that_cannot_be_used_are_refused():
    learner = CQL(table(), CQLConfig(target="monte_carlo"))
    with pytest.raises(ValueError, match="data must be episodes"):
        learner.fit(ReplayBuffer.from_episodes(episodes()))
    with pytest.raises(ValueError, match="data is empty"):
        learner.fit([])
