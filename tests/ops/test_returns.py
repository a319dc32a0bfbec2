import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.ops import n_step_returns


def plain(rewards, terminated, truncated, discount):
    """Walk the steps one by one."""
    total, factor = 0.0, 1.0
    for step, reward in enumerate(rewards):
        total += factor * reward
        factor *= discount
        if terminated[step]:
            return total, 0.0, step + 1
        if truncated[step]:
            return total, factor, step + 1
    return total, factor, len(rewards)


@st.composite
def experience(draw):
    steps = draw(st.integers(1, 12))
    rows = draw(st.integers(1, 4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rewards = torch.randn(rows, steps, generator=rng)
    ends = [torch.rand(rows, steps, generator=rng) < 0.15 for _ in range(2)]
    return rewards, *ends, draw(st.sampled_from([0.0, 0.5, 0.97, 1.0]))


@settings(deadline=None)
@given(experience())
def test_the_sum_is_that_of_a_walk_over_the_steps(case):
    rewards, terminated, truncated, discount = case
    found = n_step_returns(rewards, terminated, truncated, discount=discount)
    rows = zip(rewards.tolist(), terminated.tolist(), truncated.tolist(), strict=True)
    expected = [plain(*row, discount) for row in rows]
    sums, discounts, counts = (torch.tensor(column) for column in zip(*expected, strict=True))
    torch.testing.assert_close(found.returns, sums, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.discounts, discounts, atol=1e-6, rtol=1e-6)
    assert torch.equal(found.num_steps, counts)


def test_one_step_is_the_reward_and_the_discount():
    no = torch.zeros(1, dtype=torch.bool)
    returns, discounts, num_steps = n_step_returns(torch.tensor([3.0]), no, no, discount=0.9)
    assert (returns.item(), num_steps.item()) == (3.0, 1)
    assert discounts.item() == pytest.approx(0.9)


def test_what_lies_behind_the_end_may_be_anything():
    rewards = torch.tensor([1.0, torch.inf, torch.nan])
    ends = torch.tensor([True, False, True])
    returns = n_step_returns(rewards, ends, ~ends, discount=0.9).returns
    assert returns.item() == 1.0


def test_a_step_that_terminates_and_truncates_terminates():
    yes = torch.ones(1, dtype=torch.bool)
    assert n_step_returns(torch.ones(1), yes, yes, discount=0.9).discounts.item() == 0.0


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3), (2, 5, 3)])
def test_leading_dimensions_are_kept(shape):
    no = torch.zeros(shape, dtype=torch.bool)
    found = n_step_returns(torch.ones(shape), no, no, discount=1.0)
    assert all(part.shape == shape[:-1] for part in found)


@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_to_one_graph():
    rewards = torch.arange(6.0).view(2, 3)
    ends = torch.tensor([[False, True, False], [False, False, False]])
    compiled = torch.compile(n_step_returns, fullgraph=True, backend="eager")
    for mine, theirs in zip(
        compiled(rewards, ends, ~ends, discount=0.5),
        n_step_returns(rewards, ends, ~ends, discount=0.5),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.usefixtures("without_shape_checks")
def test_bad_input_is_named():
    no = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"discount must satisfy 0\.0 <= discount <= 1\.0, got 1\.5"
    ):
        n_step_returns(torch.ones(3), no, no, discount=1.5)
    empty = torch.zeros(0, dtype=torch.bool)
    with pytest.raises(ValueError, match="one shape with at least one step"):
        n_step_returns(torch.ones(0), empty, empty, discount=0.5)
