"""Expectation-maximisation where everything can be written down: a policy that is a table.

One problem is one token, an answer is one token, and the policy is one categorical a problem. The
M-step is the library's own training loop, on samples weighted by their exact probability.
"""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from selftrain.training import FinetuneConfig, OptimConfig, finetune

NUM_PROBLEMS, NUM_ANSWERS = 3, 4
REWARDS = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])  # the last: never right


class Table(nn.Module):
    """Logits of an answer as a function of the problem alone."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn(NUM_PROBLEMS, NUM_ANSWERS, generator=rng))

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.logits[input_ids.clamp(max=NUM_PROBLEMS - 1)])

    def probs(self):
        return self.logits.detach().softmax(-1)


def weighted_rows(probs, rewards):
    """Return every answer to every problem, weighted by r(x, y) p(y | x)."""
    return [
        {"prompt_ids": [x], "completion_ids": [y], "weight": float(rewards[x, y] * probs[x, y])}
        for x in range(NUM_PROBLEMS)
        for y in range(NUM_ANSWERS)
        if rewards[x, y] > 0
    ]


def m_step(table, rows, num_steps=400):
    optim = OptimConfig(learning_rate=0.3, schedule="cosine", final_fraction=0.0)
    config = FinetuneConfig(num_steps=num_steps, batch_size=len(rows), optim=optim)
    return finetune(table, rows, config, show_progress=False)


def success(probs):
    return (probs * REWARDS).sum(-1)


def test_one_round_gives_the_posterior_and_success_one_where_success_was_possible():
    table = Table()
    before = table.probs()
    m_step(table, weighted_rows(before, REWARDS))
    posterior = before * REWARDS / success(before).unsqueeze(-1)
    torch.testing.assert_close(table.probs()[:2], posterior[:2], atol=5e-3, rtol=0)
    torch.testing.assert_close(success(table.probs())[:2], torch.ones(2), atol=5e-3, rtol=0)


def test_a_problem_that_was_never_solved_keeps_its_policy_bit_for_bit():
    table = Table()
    before = table.logits.detach().clone()
    m_step(table, weighted_rows(table.probs(), REWARDS), num_steps=20)
    assert torch.equal(table.logits[2], before[2])


def test_the_posterior_is_a_fixed_point_and_the_bound_never_falls():
    table = Table()
    # log p(O=1 | x) at the solvable problems; with exact E-steps the bound touches it.
    bounds = [success(table.probs())[:2].log().sum()]
    policies = [table.probs()]
    for _ in range(3):
        rows = weighted_rows(table.probs(), REWARDS)
        m_step(table, rows)
        policies.append(table.probs())
        bounds.append(success(table.probs())[:2].log().sum())
    assert all(b >= a - 1e-4 for a, b in pairwise(bounds))
    torch.testing.assert_close(policies[1], policies[3], atol=1e-2, rtol=0)


def test_scaling_all_rewards_leaves_the_optimum():
    one, two = Table(), Table()
    rows = weighted_rows(one.probs(), REWARDS)
    m_step(one, rows)
    m_step(two, [{**row, "weight": 7 * row["weight"]} for row in rows])
    torch.testing.assert_close(one.probs(), two.probs(), atol=1e-5, rtol=0)


def test_with_all_rewards_one_the_loss_is_plain_supervised_training():
    table = Table()
    rows = [{"prompt_ids": [x], "completion_ids": [y]} for x in (0, 1, 2) for y in (0, 3)]
    expected = -table.logits.log_softmax(-1)[:, [0, 3]].mean()
    report = m_step(table, rows, num_steps=1)
    assert report.history[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_reward_zero_is_the_same_as_not_being_there():
    with_zeros, without = Table(), Table()
    rows = weighted_rows(with_zeros.probs(), REWARDS)
    zeros = [{"prompt_ids": [2], "completion_ids": [0], "weight": 0.0}]
    config = FinetuneConfig(num_steps=3, batch_size=100)
    finetune(with_zeros, [*rows, *zeros] * 1, config, show_progress=False)
    assert torch.equal(with_zeros.logits[2], without.logits[2])
