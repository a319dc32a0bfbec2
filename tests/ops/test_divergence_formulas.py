import pytest
import torch

from selftrain.ops.divergence_formulas import DIVERGENCES, FORMULAS, resolve

CASES = [("jsd", 0.3), ("skew_kl", 0.3), ("skew_reverse_kl", 0.3), ("amari", 0.3), ("amari", 0.7)]


def log_probs(seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(4, 9, generator=rng, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("forward_kl", 0.3, 0.3), ("forward_kl", 0.0, 1.0)),
        (("total_variation", 0.3, 7.0, "unit"), ("total_variation", 0.0, 1.0)),
        (("jsd", 0.25, 0.1), ("jsd", 0.25, 1.0)),
        (("jsd", 0.25, 0.1, "unit"), ("jsd", 0.25, 16 / 3)),
        (("jsd", 0.0, 0.1, "unit"), ("forward_kl", 0.0, 1.0)),
        (("jsd", 1.0, 0.1), ("reverse_kl", 0.0, 1.0)),
        (("skew_kl", 0.5, 0.0), ("forward_kl", 0.0, 1.0)),
        (("skew_kl", 0.5, 0.25), ("skew_kl", 0.25, 1.0)),
        (("skew_reverse_kl", 0.5, 0.0), ("reverse_kl", 0.0, 1.0)),
        # The parameter is the teacher's weight in the mixture, alpha the student's.
        (("skew_reverse_kl", 0.5, 0.25), ("skew_reverse_kl", 0.75, 1.0)),
        (("amari", 0.5, 0.0), ("reverse_kl", 0.0, 1.0)),
        (("amari", 0.5, 1.0), ("forward_kl", 0.0, 1.0)),
        (("amari", 0.5, 0.25), ("amari", 0.25, 1.0)),
    ],
)
def test_resolve_gives_formula_parameter_and_factor(arguments, expected):
    kind, parameter, factor = resolve(*arguments)
    assert kind == expected[0]
    assert (parameter, factor) == pytest.approx(expected[1:])


def test_every_divergence_has_a_formula():
    assert list(DIVERGENCES) == list(FORMULAS)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_value_does_not_depend_on_whether_the_gradient_is_asked_for(kind):
    value, grad = FORMULAS[kind](log_probs(1), log_probs(2), 0.3, True)
    alone, none = FORMULAS[kind](log_probs(1), log_probs(2), 0.3, False)
    assert torch.equal(value, alone)
    assert grad.shape == (4, 9)
    assert none is None


@pytest.mark.parametrize(("kind", "parameter"), CASES)
def test_gradient_is_that_of_the_table_of_g(kind, parameter):
    log_q, log_p = log_probs(1), log_probs(2)
    q, p, w = log_q.exp(), log_p.exp(), parameter
    m = w * p + (1 - w) * q
    g = {
        "jsd": (1 - w) * (log_q - m.log()),
        "skew_kl": -(1 - w) * p / m,
        "skew_reverse_kl": log_q - m.log() + 1 - (1 - w) * q / m,
        "amari": -(p**w) * q ** (-w) / w,
    }[kind]
    expected = q * (g - (q * g).sum(-1, keepdim=True))
    _, grad = FORMULAS[kind](log_q.clone(), log_p.clone(), parameter, True)
    torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-14)
