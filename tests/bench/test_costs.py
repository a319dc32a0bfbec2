import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.bench.costs import BareForwards, ForwardCosts
from selftrain.bench.synthetic import synthetic_pair
from selftrain.decoding.cost_model import speedup

# The measurement of transformers on two CPU threads: T_d, T_1, T_{g+1}, g and the ceiling.
MEASURED = [
    (3.4, 22.9, 39.4, 5, 100),
    (3.6, 23.0, 25.4, 5, 139),
    (0.58, 2.70, 3.54, 4, 819),
    (0.81, 4.18, 4.66, 4, 609),
]


@pytest.mark.parametrize(("draft", "one", "block", "num", "ceiling"), MEASURED)
def test_the_ceiling_is_tokens_over_the_time_of_the_forwards(draft, one, block, num, ceiling):
    costs = ForwardCosts(draft_step=draft, target_one=one, target_block=block, num_draft_tokens=num)
    efficiency = costs.block * ceiling / 1000
    assert num * 0.9 < efficiency < num + 1.1  # nearly everything was accepted there
    assert costs.ceiling(efficiency) == pytest.approx(ceiling)


def test_the_ceiling_of_a_batch_counts_every_row():
    parts = {"draft_step": 1.0, "target_one": 5.0, "target_block": 6.0, "num_draft_tokens": 4}
    one, eight = (ForwardCosts(**parts, batch_size=n) for n in (1, 8))
    assert one.ceiling(3.0) == pytest.approx(300)
    assert eight.ceiling(3.0) == pytest.approx(2400)


@given(st.floats(0.0, 0.99), st.integers(1, 8), st.floats(0.01, 0.5))
def test_memory_bound_models_have_the_speed_up_of_leviathan(acceptance, num, ratio):
    """Where a block costs the target no more than a token, the textbook formula holds."""
    costs = ForwardCosts(
        draft_step=10 * ratio, target_one=10.0, target_block=10.0, num_draft_tokens=num
    )
    efficiency = sum(acceptance**i for i in range(num + 1))
    assert costs.speedup(efficiency) == pytest.approx(speedup(acceptance, num, ratio))


def test_verification_lowers_the_prediction_by_its_share_of_the_block():
    costs = ForwardCosts(draft_step=1.0, target_one=8.0, target_block=8.0, num_draft_tokens=2)
    assert costs.speedup(2.5) == pytest.approx(2.0)
    assert costs.speedup(2.5, verify=10.0) == pytest.approx(1.0)


def test_bare_forwards_leave_the_caches_as_they_were():
    target, draft = synthetic_pair("tiny")
    bare = BareForwards(target, draft, context=7, num_draft_tokens=3, batch_size=2)
    before = {role: cache.layers[0].keys.clone() for role, cache in bare.caches.items()}
    first = bare.measure(2)
    bare.measure(3)
    for role, cache in bare.caches.items():
        assert cache.get_seq_length() == 7
        assert torch.equal(cache.layers[0].keys, before[role])
    assert {name: len(times) for name, times in bare.times.items()} == dict.fromkeys(bare.parts, 5)
    assert min(first.draft_step, first.target_one, first.target_block) > 0
    assert bare.all().batch_size == 2


def test_a_block_feeds_the_pending_token_and_the_draft():
    target, draft = synthetic_pair("tiny")
    fed = []
    target.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    BareForwards(target, draft, context=5, num_draft_tokens=3).measure(1)
    assert fed == [(1, 5), (1, 1), (1, 4)]
