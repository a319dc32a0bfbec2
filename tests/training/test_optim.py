import dataclasses

import pytest
import torch
from torch import nn

from selftrain.training import OptimConfig, build_optimizer, learning_rate_at


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_linearly_to_the_peak(schedule):
    config = OptimConfig(learning_rate=1.0, warmup_steps=4, schedule=schedule)
    rates = [learning_rate_at(step, 100, config) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_ends_at_the_final_fraction_and_is_halfway_in_the_middle(schedule):
    config = OptimConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule, final_fraction=0.1)
    assert learning_rate_at(110, 111 + 100, config) == pytest.approx(2.0 * 0.55)
    assert learning_rate_at(210, 211, config) == pytest.approx(0.2)


def test_constant_schedule_stays_at_the_peak():
    config = OptimConfig(learning_rate=0.5)
    assert {learning_rate_at(step, 10, config) for step in range(10)} == {0.5}


def test_vectors_are_not_decayed_and_matrices_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.1, weight_decay=0.5))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old * (0.95 if new.ndim == 2 else 1.0))


def test_a_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="nothing would learn"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("warmup_steps", -1),
        ("schedule", "step"),
        ("final_fraction", 2.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("max_grad_norm", 0.0),
    ],
)
def test_bad_settings_are_errors_that_name_the_field(name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(OptimConfig(), **{name: value})
