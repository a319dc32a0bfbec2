import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from selftrain.ops import forward_kl, kl_estimate, policy_kl_loss, reverse_kl

VOCAB = 6


def logits(*shape, seed=0, scale=1.0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=dtype)


def laws(seed, scale=1.0):
    s, t = logits(VOCAB, seed=seed, scale=scale), logits(VOCAB, seed=seed + 1, scale=scale)
    return torch.log_softmax(s, -1), torch.log_softmax(t, -1)


def gradient(loss, s):
    return torch.autograd.grad(loss, s)[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3.0))
def test_means_of_the_unbiased_estimates_are_the_kl(seed, scale):
    log_q, log_p = laws(seed, scale)
    expected = reverse_kl(log_q, log_p)
    for estimator in ("k1", "k3"):
        mean = (log_q.exp() * kl_estimate(log_q, log_p, estimator=estimator)).sum()
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-13)


def test_k2_has_its_textbook_value_and_a_bias():
    log_q, log_p = laws(3)
    estimate = kl_estimate(log_q, log_p, estimator="k2")
    torch.testing.assert_close(estimate, 0.5 * (log_p - log_q) ** 2)
    assert abs((log_q.exp() * estimate).sum() - reverse_kl(log_q, log_p)) > 1e-3


def test_k2_tends_to_the_kl_as_the_models_meet():
    log_q = torch.log_softmax(logits(VOCAB, seed=1), -1)
    log_p = torch.log_softmax(log_q + 1e-3 * logits(VOCAB, seed=2), -1)
    mean = (log_q.exp() * kl_estimate(log_q, log_p, estimator="k2")).sum()
    torch.testing.assert_close(mean, reverse_kl(log_q, log_p), rtol=1e-2, atol=0)


@settings(max_examples=100, deadline=None)
@given(log_q=st.floats(-80, 0, width=32), difference=st.floats(-(2**-10), 2**-10, width=32))
def test_k3_is_never_negative_in_float32(log_q, difference):
    student = torch.tensor([log_q], dtype=torch.float32)
    assert (kl_estimate(student, student + difference, estimator="k3") >= 0).all()


def test_k3_is_zero_only_for_equal_probabilities():
    log_q, log_p = laws(3)
    assert (kl_estimate(log_q, log_q) == 0).all()
    assert (kl_estimate(log_q, log_p) > 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_token_the_teacher_bans_has_an_infinite_estimate(estimator):
    log_q, log_p = torch.tensor([-1.0]), torch.tensor([-float("inf")])
    assert kl_estimate(log_q, log_p, estimator=estimator).item() == math.inf


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimates_are_for_measuring_only(estimator):
    log_q = torch.tensor([-1.0], requires_grad=True)
    assert not kl_estimate(log_q, torch.tensor([-2.0]), estimator=estimator).requires_grad


def test_differentiating_k3_would_give_the_forward_kl():
    # Why estimates carry no gradient: the plain formula's belongs to another divergence.
    s, t = logits(VOCAB, seed=1).requires_grad_(), logits(VOCAB, seed=2)
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    k3 = (log_p - log_q).exp() - 1 - (log_p - log_q)
    torch.testing.assert_close(
        gradient((log_q.exp().detach() * k3).sum(), s), gradient(forward_kl(s, t), s)
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3.0))
def test_expected_gradient_over_the_student_is_that_of_reverse_kl(seed, scale):
    s, t = logits(VOCAB, seed=seed, scale=scale), logits(VOCAB, seed=seed + 1, scale=scale)
    s.requires_grad_()
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    mean = (log_q.exp().detach() * policy_kl_loss(log_q, log_p)).sum()
    torch.testing.assert_close(
        gradient(mean, s), gradient(reverse_kl(s, t), s), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(mean, reverse_kl(s, t), rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3.0))
def test_expected_gradient_over_an_older_student_is_that_of_reverse_kl(seed, scale):
    s, t = logits(VOCAB, seed=seed, scale=scale), logits(VOCAB, seed=seed + 1, scale=scale)
    log_b = torch.log_softmax(logits(VOCAB, seed=seed + 2, scale=scale), -1).requires_grad_()
    s.requires_grad_()
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    loss = policy_kl_loss(log_q, log_p, behaviour_log_probs=log_b)
    mean = (log_b.exp().detach() * loss).sum()
    expected = gradient(reverse_kl(s, t), s)
    torch.testing.assert_close(
        torch.autograd.grad(mean, s, retain_graph=True)[0], expected, rtol=1e-10, atol=1e-12
    )
    assert torch.autograd.grad(mean, log_b, allow_unused=True) == (None,)


def test_gradient_of_one_token_is_minus_the_advantage():
    log_q = torch.tensor([-1.0, -2.0], requires_grad=True)
    log_p = torch.tensor([-1.5, -0.5], requires_grad=True)
    loss = policy_kl_loss(log_q, log_p)
    loss.sum().backward()
    torch.testing.assert_close(log_q.grad, torch.tensor([0.5, -1.5]))
    torch.testing.assert_close(loss.detach(), torch.tensor([0.5, -1.5]))
    assert log_p.grad is None


def test_the_sampled_gradient_is_noisier_than_the_full_one():
    s, t = logits(VOCAB, seed=1).requires_grad_(), logits(VOCAB, seed=2)
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    exact = gradient(reverse_kl(s, t), s)
    loss = policy_kl_loss(log_q, log_p)
    grads = [torch.autograd.grad(loss[y], s, retain_graph=True)[0] for y in range(VOCAB)]
    variance = sum(q * (g - exact).square().sum() for q, g in zip(log_q.exp(), grads, strict=True))
    assert variance > exact.square().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    log_q, log_p = torch.tensor([-1.0], dtype=dtype), torch.tensor([-1.25], dtype=dtype)
    assert kl_estimate(log_q, log_p).dtype == torch.float32
    assert policy_kl_loss(log_q, log_p).dtype == torch.float32


@pytest.mark.usefixtures("without_shape_checks")
def test_they_compile_without_graph_breaks():
    log_q, log_p = laws(1)
    for function in (kl_estimate, policy_kl_loss):
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(log_q, log_p), function(log_q, log_p))


@pytest.mark.usefixtures("without_shape_checks")
def test_bad_arguments_are_errors():
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match="estimator must be one of 'k1', 'k2', 'k3'"):
        kl_estimate(one, one, estimator="k4")
    with pytest.raises(ValueError, match=r"teacher_log_probs has shape \(2,\)"):
        kl_estimate(one, two)
    with pytest.raises(ValueError, match=r"teacher_log_probs has shape \(2,\)"):
        policy_kl_loss(one, two)
    with pytest.raises(ValueError, match=r"behaviour_log_probs has shape \(2,\)"):
        policy_kl_loss(one, one, behaviour_log_probs=two)
