import hypothesis.strategies as st
from hypothesis import given

from selftrain.training import batch_indices


@given(
    seed=st.integers(0, 2**32),
    num_items=st.integers(1, 20),
    batch_size=st.integers(1, 30),
)
def test_every_epoch_holds_every_item_once(seed, num_items, batch_size):
    steps = -(-3 * num_items // batch_size)
    stream = [
        i
        for step in range(steps)
        for i in batch_indices(seed, step, num_items=num_items, batch_size=batch_size)
    ]
    for epoch in range(3):
        part = stream[epoch * num_items : (epoch + 1) * num_items]
        assert sorted(part) == list(range(num_items))


def test_epochs_and_seeds_differ_in_order():
    orders = {
        tuple(batch_indices(seed, epoch, num_items=20, batch_size=20))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
