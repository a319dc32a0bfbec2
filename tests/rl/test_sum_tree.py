import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from selftrain.rl.sum_tree import SumTree, last_of_each

SIZES = [1, 2, 127, 128, 129, 128**2, 128**2 + 1, 128**2 * 3]


def filled(weights):
    tree = SumTree(len(weights))
    tree.fill(torch.as_tensor(weights))
    return tree


@pytest.mark.parametrize("size", [1000, 20_000])
def test_a_million_writes_leave_no_drift(size):
    tree, rng = SumTree(size), torch.Generator().manual_seed(0)
    for _ in range(1000):
        indices = torch.randperm(size, generator=rng)[:1000]
        tree.set(indices, torch.rand(len(indices), generator=rng) ** 4 * 1e3)
    exact = tree.weights.double().sum()
    assert abs(tree.total - exact) / exact < 1e-14
    assert abs(tree.total - exact) < 1e-9 * len(tree.weights)
    assert torch.equal(tree.total, filled(tree.weights).total)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.integers(0, 10**6),
    st.lists(st.integers(1, 50), min_size=1, max_size=4),
)
def test_written_piece_by_piece_it_is_the_tree_made_at_once(size, seed, writes):
    tree, rng = SumTree(size), torch.Generator().manual_seed(seed)
    for num in writes:
        indices = torch.randperm(size, generator=rng)[:num]
        tree.set(indices, torch.rand(len(indices), generator=rng))
    anew = filled(tree.weights)
    assert torch.equal(tree.total, anew.total)
    fractions = torch.rand(50, generator=rng, dtype=torch.float64)
    assert torch.equal(tree.find(fractions), anew.find(fractions))


@pytest.mark.parametrize("size", SIZES)
def test_find_inverts_the_running_sum(size):
    rng = torch.Generator().manual_seed(size)
    weights = torch.randint(0, 5, (size,), generator=rng).float()  # sums of integers are exact
    weights[-1] = 1.0
    fractions = torch.rand(500, generator=rng, dtype=torch.float64)
    running = weights.double().cumsum(0)
    expected = torch.searchsorted(running, fractions * running[-1], right=True)
    assert torch.equal(filled(weights).find(fractions), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fraction", [0.0, 5e-324, 0.5, 1 - 2.0**-53, 1.0])
def test_the_edges_never_lead_to_an_empty_weight(size, fraction):
    rng = torch.Generator().manual_seed(size)
    weights = torch.rand(size, generator=rng) * (torch.rand(size, generator=rng) < 0.1)
    weights[size // 2] = 0.1
    found = filled(weights).find(torch.tensor([fraction], dtype=torch.float64))
    assert weights[found] > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(0, 10**6))
def test_zero_weights_are_never_found(size, seed):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, generator=rng) ** 20 * (torch.rand(size, generator=rng) < 0.5)
    weights[seed % size] = 1e-30
    fractions = torch.rand(300, generator=rng, dtype=torch.float64)
    assert (weights[filled(weights).find(fractions)] > 0).all()


def test_draws_follow_the_weights():
    rng = torch.Generator().manual_seed(0)
    weights = torch.rand(200, generator=rng) ** 2 + 0.01
    fractions = torch.rand(30_000, generator=rng, dtype=torch.float64)
    counts = torch.bincount(filled(weights).find(fractions), minlength=200).double()
    expected = weights.double() / weights.double().sum() * len(fractions)
    assert chisquare(counts, expected).pvalue > 1e-3


def test_weights_of_very_different_size_keep_their_shares():
    weights = torch.tensor([1e-20] * 130 + [1e20])
    tree = filled(weights)
    assert tree.find(torch.tensor([0.5], dtype=torch.float64)).item() == 130
    tree.set(torch.tensor([130]), torch.tensor([0.0]))
    assert tree.total.item() == pytest.approx(130e-20)
    assert tree.find(torch.tensor([0.5], dtype=torch.float64)).item() == 65


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_the_last_of_equal_indices_wins(indices):
    last = {index: place for place, index in enumerate(indices)}
    expected = [last[index] for index in indices]
    assert last_of_each(torch.tensor(indices)).tolist() == expected


def test_a_tree_costs_little_more_than_its_weights():
    assert SumTree(10**6).num_bytes < 1.02 * 4 * 10**6 + 10_000
