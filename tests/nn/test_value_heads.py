"""Heads: shapes, losses, types, devices, saved states, bad input, and that they learn."""

import copy
import math

import pytest
import torch

from selftrain.nn import CategoricalValueHead, ScalarValueHead
from selftrain.ops import C51, HLGauss, OneHot, Support, Symlog, TwoHot

SUPPORT = Support(-10.0, 10.0, 51)


def make_heads(num_outputs=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            ScalarValueHead(8, num_outputs=num_outputs),
            ScalarValueHead(8, num_outputs=num_outputs, huber_delta=1.0, scalar=Symlog()),
            *(
                CategoricalValueHead(8, transform, num_outputs=num_outputs)
                for transform in (HLGauss(SUPPORT), TwoHot(SUPPORT), C51(SUPPORT), OneHot(SUPPORT))
            ),
        ]


def features(*shape, seed=1):
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(seed))


def size_of(head):
    return getattr(head, "num_bins", 1)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_shapes_with_one_output(index, batch):
    head = make_heads()[index]
    logits = head(features(*batch))
    assert logits.shape == (*batch, size_of(head))
    assert head.value(logits).shape == batch
    assert head.loss(logits, torch.ones(batch)).shape == batch


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_shapes_with_an_output_for_each_action(index, batch):
    head = make_heads(num_outputs=4)[index]
    logits = head(features(*batch))
    assert logits.shape == (*batch, 4, size_of(head))
    assert head.value(logits).shape == (*batch, 4)
    assert head.loss(logits, torch.ones(*batch, 4)).shape == (*batch, 4)
    actions = torch.full(batch, 3, dtype=torch.long)
    chosen = head.select(logits, actions)
    assert torch.equal(chosen, logits[..., 3, :])
    assert head.loss(chosen, torch.ones(batch)).shape == batch


@pytest.mark.parametrize("index", range(6))
def test_only_the_selected_outputs_get_gradients(index):
    head = make_heads(num_outputs=3)[index]
    logits = head(features(2)).detach().requires_grad_()
    chosen = head.select(logits, torch.tensor([2, 0]))
    head.loss(chosen, torch.tensor([1.0, -1.0])).sum().backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("index", range(6))
def test_weights_multiply_losses_and_integers_are_values(index):
    head = make_heads()[index]
    logits = head(features(3))
    plain = head.loss(logits, torch.tensor([1.0, -2.0, 0.0]))
    weights = torch.tensor([0.5, 0.0, 2.0])
    weighted = head.loss(logits, torch.tensor([1, -2, 0]), weights=weights)
    assert torch.equal(weighted, plain * weights)


@pytest.mark.parametrize("index", range(6))
def test_no_gradient_reaches_the_network_that_makes_the_targets(index):
    head, target = make_heads()[index], make_heads()[index]
    values = target.value(target(features(4)))
    assert values.requires_grad
    head.loss(head(features(4)), values).sum().backward()
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is not None for p in head.parameters())


def test_the_squared_and_the_huber_error_are_those_of_torch():
    logits, targets = features(7)[:, :1] * 3, torch.linspace(-4, 4, 7)
    squared = ScalarValueHead(8).loss(logits, targets)
    mse = torch.nn.functional.mse_loss(logits[:, 0], targets, reduction="none")
    torch.testing.assert_close(squared, mse)
    huber = ScalarValueHead(8, huber_delta=0.7).loss(logits, targets)
    want = torch.nn.functional.huber_loss(logits[:, 0], targets, reduction="none", delta=0.7)
    torch.testing.assert_close(huber, want)


def test_a_scalar_transform_is_between_predictions_and_values():
    head = ScalarValueHead(8, scalar=Symlog())
    logits = torch.tensor([[math.log(8.0)]])
    torch.testing.assert_close(head.value(logits), torch.tensor([7.0]))
    torch.testing.assert_close(head.loss(logits, torch.tensor([7.0])), torch.zeros(1))


def test_values_are_the_expected_centres():
    head = CategoricalValueHead(8, HLGauss(SUPPORT))
    logits = head(features(5))
    want = torch.softmax(logits.double(), -1) @ head.transform.grid(dtype=torch.float64).centers
    torch.testing.assert_close(head.value(logits).double(), want, atol=2e-6, rtol=0)


def test_distributions_are_targets_too():
    head = CategoricalValueHead(8, C51(SUPPORT))
    logits = head(features(3))
    rewards = torch.tensor([1.0, 2.0, 40.0])
    target = head.transform.project(torch.softmax(logits, -1), rewards, torch.zeros(3))
    got = head.loss(logits, target_probs=target)
    torch.testing.assert_close(got, head.loss(logits, rewards))


def test_measures_are_the_divergence_the_error_and_the_clipped_share():
    head = CategoricalValueHead(8, HLGauss(SUPPORT))
    targets = torch.tensor([0.0, 1.0, 50.0, -3.0])
    probs = head.transform.encode(targets)
    measured = head.measure(probs.clamp(min=1e-30).log(), targets)
    assert measured["kl"] == pytest.approx(0.0, abs=1e-5)
    assert measured["clip_fraction"] == 0.25
    assert measured["absolute_error"] == pytest.approx((50 - 10 + 0.69 * 20 / 51) / 4, abs=0.01)
    assert not measured["kl"].requires_grad
    scalar = ScalarValueHead(8).measure(torch.zeros(2, 1), torch.tensor([1, -3]))
    assert scalar["absolute_error"] == 2.0


# Buffers


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_centres_stay_in_float32_to_the_bit_when_the_head_becomes_half(convert):
    head = CategoricalValueHead(8, HLGauss(Support(-10.0, 10.0, 101)))
    centers, rest = head.centers.clone(), head.rest.clone()
    outer = convert(torch.nn.Sequential(torch.nn.Linear(8, 8), head))
    assert head.linear.weight.itemsize == 2
    assert head.centers.dtype == head.rest.dtype == torch.float32
    assert torch.equal(head.centers, centers)
    assert torch.equal(head.rest, rest)
    logits = outer(features(3).to(head.linear.weight.dtype))
    assert head.value(logits).dtype == torch.float32
    assert head.loss(logits, torch.ones(3)).dtype == torch.float32
    head.loss(logits, torch.ones(3)).sum().backward()
    assert head.linear.weight.grad.dtype == head.linear.weight.dtype


def test_double_makes_the_centres_exact():
    head = CategoricalValueHead(8, HLGauss(SUPPORT)).half().double()
    assert torch.equal(head.centers, head.transform.grid(dtype=torch.float64).centers)
    assert head.float().centers.dtype == torch.float32


def test_centres_follow_the_device_and_are_written_when_a_head_leaves_the_meta_device():
    with torch.device("meta"):
        head = CategoricalValueHead(8, HLGauss(SUPPORT))
    assert head.centers.is_meta
    head.to_empty(device="cpu")
    head.reset_parameters()
    want = CategoricalValueHead(8, HLGauss(SUPPORT))
    assert torch.equal(head.centers, want.centers)
    assert torch.equal(head.rest, want.rest)
    assert want.to("meta").centers.is_meta


def test_under_autocast_the_loss_is_that_of_the_same_logits_in_float32():
    for head in make_heads():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = head(features(6))
            loss, value = head.loss(logits, torch.linspace(-3, 3, 6)), head.value(logits)
        assert logits.dtype == torch.bfloat16
        assert torch.equal(loss, head.loss(logits.float(), torch.linspace(-3, 3, 6)))
        assert torch.equal(value, head.value(logits.float()))


def test_a_saved_state_restores_the_head():
    for head, other in zip(make_heads(), make_heads(), strict=True):
        other.reset_parameters()
        other.load_state_dict(head.state_dict())
        assert torch.equal(head(features(3)), other(features(3)))
        assert torch.equal(copy.deepcopy(head)(features(3)), head(features(3)))


@pytest.mark.parametrize(
    "transform", [HLGauss(Support(-10.0, 10.5, 51)), TwoHot(SUPPORT)], ids=repr
)
def test_a_state_with_other_bins_is_refused(transform):
    state = CategoricalValueHead(8, HLGauss(SUPPORT)).state_dict()
    with pytest.raises(RuntimeError, match="its weights mean other values"):
        CategoricalValueHead(8, transform).load_state_dict(state)


# Dynamo itself makes an instance of the autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_a_step_compiles_as_one_graph():
    for head in make_heads(num_outputs=2)[1:4]:

        def step(x, actions, targets, head=head):
            logits = head(x)
            chosen = head.select(logits, actions)
            return head.loss(chosen, targets, weights=targets.abs()), head.value(logits)

        arguments = (features(3), torch.tensor([0, 1, 1]), torch.tensor([0.5, 2.0, -11.0]))
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments)
        for one, other in zip(got, step(*arguments), strict=True):
            torch.testing.assert_close(one, other)


# Bad input


@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_of_another_kind_or_size():
    with pytest.raises(TypeError, match="transform must be a ValueTransform"):
        CategoricalValueHead(8, SUPPORT)
    with pytest.raises(ValueError, match="num_outputs must satisfy"):
        CategoricalValueHead(8, TwoHot(SUPPORT), num_outputs=0)
    with pytest.raises(ValueError, match="huber_delta must satisfy"):
        ScalarValueHead(8, huber_delta=0.0)
    with pytest.raises(TypeError, match="scalar must be an object"):
        ScalarValueHead(8, scalar=Symlog)


@pytest.mark.usefixtures("without_shape_checks")
def test_targets_that_do_not_belong_to_the_logits():
    head = CategoricalValueHead(8, HLGauss(SUPPORT))
    logits = head(features(3))
    with pytest.raises(ValueError, match="give either targets"):
        head.loss(logits)
    with pytest.raises(ValueError, match="give either targets"):
        head.loss(logits, torch.zeros(3), target_probs=torch.softmax(logits, -1))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        head.loss(logits, torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"weights has shape \(1,\)"):
        head.loss(logits, torch.zeros(3), weights=torch.ones(1))
    with pytest.raises(ValueError, match="51 bins in the last dimension"):
        head.value(logits[:, :-1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        head.loss(logits, torch.tensor([0.0, math.nan, 1.0]))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_scalar_head_says_what_it_does_not_take():
    head = ScalarValueHead(8)
    with pytest.raises(ValueError, match="use a CategoricalValueHead"):
        head.loss(torch.zeros(3, 1), target_probs=torch.ones(3, 1))
    with pytest.raises(ValueError, match="a last dimension of 1"):
        head.value(torch.zeros(3, 51))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        head.loss(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="targets has 1 of 3"):
        head.loss(torch.zeros(3, 1), torch.tensor([0.0, math.inf, 1.0]))


@pytest.mark.usefixtures("without_shape_checks")
def test_selections_that_cannot_be_made():
    head = CategoricalValueHead(8, HLGauss(SUPPORT), num_outputs=4)
    with pytest.raises(ValueError, match=r"\[\*batch, 4, bins\]"):
        head.select(head(features(3)), torch.zeros(3, 1, dtype=torch.long))
    single = CategoricalValueHead(8, HLGauss(SUPPORT))
    with pytest.raises(ValueError, match="nothing to select"):
        single.select(single(features(3)), torch.zeros(3, dtype=torch.long))


def test_devices_that_differ():
    head = CategoricalValueHead(8, HLGauss(SUPPORT))
    logits = head(features(2))
    with pytest.raises(ValueError, match=r"the head is on cpu.*head.to\('meta'\)"):
        head.value(logits.to("meta"))
    with pytest.raises(ValueError, match="targets is on meta, logits on cpu"):
        head.loss(logits, torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match="weights is on meta, logits on cpu"):
        head.loss(logits, torch.zeros(2), weights=torch.zeros(2, device="meta"))


# Learning


def smooth_map(x):
    return 4 * torch.sin(2 * x[:, 0]) + 2 * x[:, 1]


def regression_error(head, width, *, num_steps, seed=0):
    """Return the test error of a net with ``head`` trained on clean samples of a smooth map."""
    rng = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(4000, 2, generator=rng) - 1
    y = smooth_map(x)
    body = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.ReLU())
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(num_steps):
        batch = torch.randint(2000, (128,), generator=rng)
        loss = head.loss(head(body(x[batch])), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (head.value(head(body(x[2000:]))) - y[2000:]).square().mean().item()


@pytest.mark.parametrize("transform", [HLGauss(SUPPORT), TwoHot(SUPPORT)], ids=repr)
def test_a_categorical_head_learns_a_smooth_map(transform):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = CategoricalValueHead(64, transform)
        assert regression_error(head, 64, num_steps=250) < 0.2  # the variance is 7.8
