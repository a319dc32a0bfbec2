import pytest
import torch
from torch import nn

from selftrain.nn import (
    CategoricalValueHead,
    MLPEncoder,
    QNetwork,
    ScalarValueHead,
    value_head,
)
from selftrain.ops import C51, HLGauss, Support, Symlog, TwoHot

SUPPORT = Support(-2.0, 2.0, 11)
TRANSFORMS = {
    "mse": None,
    "hl_gauss": HLGauss(SUPPORT),
    "two_hot": TwoHot(SUPPORT),
    "c51": C51(SUPPORT),
}


def make(name="hl_gauss", *, dueling=False) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork(MLPEncoder(4, (16,)), 3, value_head(TRANSFORMS[name]), dueling=dueling)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_logits_and_values_have_an_axis_for_actions(name, dueling):
    network = make(name, dueling=dueling)
    logits = network(torch.randn(5, 4))
    assert logits.shape == (5, 3, 1 if name == "mse" else 11)
    assert network.value(logits).shape == (5, 3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dueling_logits_are_state_plus_centred_advantages(name):
    network, states = make(name, dueling=True), torch.randn(5, 4)
    features = network.encoder(states)
    assert network.state_head is not None
    weight = network.head.linear.weight.view(3, -1, 16)
    advantages = torch.einsum("bf,azf->baz", features, weight) + network.head.linear.bias.view(
        3, -1
    )
    state = network.state_head.linear(features)[:, None]
    want = state + advantages - advantages.mean(1, keepdim=True)
    torch.testing.assert_close(network(states), want)
    # So the mean over actions is the state's own.
    torch.testing.assert_close(network(states).mean(1), state[:, 0])


def test_a_dueling_scalar_network_splits_values_exactly():
    network, states = make("mse", dueling=True), torch.randn(5, 4)
    assert network.state_head is not None
    values = network.value(network(states))
    state = network.state_head(network.encoder(states))
    torch.testing.assert_close(values.mean(-1), state[:, 0])


def test_a_shift_of_all_advantages_changes_nothing():
    network, states = make("c51", dueling=True), torch.randn(5, 4)
    before = network(states)
    with torch.no_grad():
        network.head.linear.bias.view(3, -1).add_(torch.randn(11))
    torch.testing.assert_close(network(states), before)


@pytest.mark.parametrize(("name", "dueling"), [("mse", False), ("hl_gauss", True)])
def test_values_learn_one_target_for_each_action(name, dueling):
    network = make(name, dueling=dueling)
    optimizer = torch.optim.Adam(network.parameters(), 3e-2)
    states, targets = torch.eye(4).repeat(3, 1), torch.linspace(-1.5, 1.5, 12)
    actions = torch.arange(12) // 4
    for _ in range(150):
        logits = network.head.select(network(states), actions)
        optimizer.zero_grad()
        network.head.loss(logits, targets).mean().backward()
        optimizer.step()
    values = network.value(network(states)).gather(1, actions[:, None])[:, 0]
    assert (values - targets).abs().max() < 0.1


def test_the_gradient_of_one_action_reaches_the_encoder():
    network = make(dueling=True)
    network.head.loss(
        network.head.select(network(torch.randn(2, 4)), torch.tensor([0, 2])), torch.ones(2)
    ).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_as_one_graph(dueling):
    network, states = make(dueling=dueling), torch.randn(5, 4)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(states), network(states))


def test_a_head_maker_makes_the_kind_that_its_transform_says():
    assert isinstance(value_head()(8, 2), ScalarValueHead)
    head = value_head(HLGauss(SUPPORT))(8, 2)
    assert isinstance(head, CategoricalValueHead)
    assert head.transform == HLGauss(SUPPORT)
    scalar = value_head(scalar=Symlog(), huber_delta=2.0)(8, 2)
    assert isinstance(scalar.scalar, Symlog)
    assert scalar.huber_delta == 2.0


def test_settings_of_scalar_heads_beside_a_transform_are_refused():
    with pytest.raises(ValueError, match="belong to scalar heads"):
        value_head(HLGauss(SUPPORT), huber_delta=1.0)


def test_an_encoder_that_does_not_tell_its_size_is_refused():
    with pytest.raises(TypeError, match="num_features"):
        QNetwork(nn.Linear(4, 8), 2, value_head())


def test_a_single_action_is_refused():
    with pytest.raises(ValueError, match="num_actions"):
        QNetwork(MLPEncoder(4), 1, value_head())
