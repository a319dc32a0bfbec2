from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from streams import SHAPE, Reference, Stream, add_to, everything

from selftrain.rl import ReplayBuffer

STATM = Path("/proc/self/statm")


def made(rows, *, capacity, num_envs=1, stack=1, seed=0, dtype=np.float32, **options):
    """Return a buffer, the reference and the stream that both were filled from."""
    stream = Stream(num_envs, seed, dtype=dtype)
    kind = torch.float32 if dtype == np.float32 else torch.uint8
    buffer = ReplayBuffer(
        SHAPE, capacity=capacity, num_envs=num_envs, stack=stack, dtype=kind, **options
    )
    reference = Reference(num_envs, capacity // num_envs, stack)
    for _ in range(rows):
        add_to(buffer, reference, stream.row())
    return buffer, reference, stream


def check_batch(batch, reference, *, num_steps, discount, window):
    """Compare every drawn transition with the reference."""
    for i, index in enumerate(batch.indices.tolist()):
        row, env = divmod(index, reference.num_envs)
        total, factor, after, next_row = reference.transition(env, row, num_steps, discount)
        step = reference.envs[env][row]
        shape = batch.observations.shape[1:]
        assert np.array_equal(batch.observations[i], reference.state(env, row).reshape(shape))
        assert np.array_equal(batch.next_observations[i], after.reshape(shape))
        assert batch.actions[i] == step.action
        assert batch.returns[i].item() == pytest.approx(total, abs=1e-5)
        assert batch.discounts[i].item() == pytest.approx(factor, abs=1e-6)
        expected = 0 if next_row is None else reference.envs[env][next_row].action
        assert batch.next_actions[i] == expected
        if window:
            check_window(batch.window, i, reference, env, row, window)


def check_window(found, i, reference, env, row, num):
    states, mask = reference.window(env, row, num)
    assert found.mask[i].tolist() == mask
    shape, steps = found.observations.shape[2:], reference.envs[env]
    for k, state in enumerate(states):
        if state is not None:
            assert np.array_equal(found.observations[i, k], state.reshape(shape))
        if k < num and row + k < reference.end:
            assert found.actions[i, k] == steps[row + k].action


@settings(max_examples=40, deadline=None)
@given(
    num_steps=st.sampled_from([1, 2, 3, 10]),
    window=st.sampled_from([0, 1, 5]),
    stack=st.sampled_from([1, 4]),
    num_envs=st.integers(1, 3),
    rows=st.integers(16, 70),
    seed=st.integers(0, 10**6),
)
def test_batches_are_those_of_a_walk_over_the_episodes(
    num_steps, window, stack, num_envs, rows, seed
):
    buffer, reference, _ = made(
        rows, capacity=30 * num_envs, num_envs=num_envs, stack=stack, seed=seed
    )
    drawable = reference.drawable(num_steps, window)
    options = {"num_steps": num_steps, "discount": 0.9, "window": window}
    if not drawable:
        with pytest.raises(ValueError, match="can be drawn"):
            everything(buffer, **options)
        return
    batch = everything(buffer, **options)
    assert set(batch.indices.tolist()) == drawable
    check_batch(batch, reference, **options)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([1, 3, 10]), st.sampled_from([0, 5])),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_drawing_between_additions_changes_nothing(visits, num_envs, seed):
    buffer, reference, stream = made(
        20, capacity=30 * num_envs, num_envs=num_envs, stack=3, seed=seed
    )
    for rows, num_steps, window in visits:
        for _ in range(rows):
            add_to(buffer, reference, stream.row())
        drawable = reference.drawable(num_steps, window)
        if drawable:
            batch = everything(buffer, num_steps=num_steps, window=window)
            assert set(batch.indices.tolist()) == drawable


def test_after_a_truncation_the_stored_last_observation_completes_the_return():
    buffer = ReplayBuffer((1,), capacity=10, dtype=torch.float32)
    for step in range(3):
        buffer.add([[step + 1.0]], [step], [1.0], [False], [step == 2])
    buffer.add([[4.0]], [7], [0.0], [False], [False], valid=[False])
    batch = everything(buffer, num_steps=5, discount=0.5)
    by_index = {i: k for k, i in enumerate(batch.indices.tolist())}
    assert sorted(by_index) == [0, 1, 2]
    order = [by_index[i] for i in range(3)]
    assert batch.returns[order].tolist() == [1.75, 1.5, 1.0]
    assert batch.discounts[order].tolist() == [0.125, 0.25, 0.5]
    assert batch.next_observations[order].flatten().tolist() == [4.0, 4.0, 4.0]
    assert batch.next_actions[order].tolist() == [7, 7, 7]


def test_without_it_the_steps_before_a_truncation_are_not_drawn():
    buffer = ReplayBuffer((1,), capacity=20, dtype=torch.float32)
    for step in range(10):
        buffer.add([[step + 1.0]], [0], [1.0], [False], [step == 4])
    assert set(everything(buffer, num_steps=2).indices.tolist()) == {0, 1, 2, 5, 6, 7}


def test_a_life_lost_ends_the_return_and_clears_the_stack_but_not_the_game():
    buffer = ReplayBuffer((1,), capacity=20, dtype=torch.uint8, stack=3)
    for step in range(6):
        frame = np.array([[step + 1]], dtype=np.uint8)
        buffer.add(frame, [0], [1.0], [step == 2], [False])
    batch = everything(buffer, num_steps=2, discount=1.0)
    found = dict(zip(batch.indices.tolist(), batch.observations[..., 0].tolist(), strict=True))
    assert found == {0: [0, 0, 1], 1: [0, 1, 2], 2: [1, 2, 3], 3: [0, 0, 4]}
    assert (batch.next_observations[batch.discounts == 0] == 0).all()


def test_frames_are_stored_once():
    buffer = ReplayBuffer((84, 84), capacity=1000, stack=4, priority_exponent=0.5)
    assert buffer.num_bytes / buffer.capacity < 7100


@pytest.mark.skipif(not STATM.exists(), reason="asks Linux for the memory in use")
def test_memory_is_taken_as_it_fills():
    def pages():
        return int(STATM.read_text().split()[1])

    before = pages()
    buffer = ReplayBuffer((84, 84), capacity=100_000)
    used = (pages() - before) * 4096
    assert used < 5_000_000 < 700_000_000 < buffer.num_bytes


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_steps_are_drawn_in_proportion_to_powers_of_priorities(exponent):
    rng = torch.Generator().manual_seed(0)
    buffer = ReplayBuffer((1,), capacity=100, priority_exponent=exponent)
    for step in range(61):
        buffer.add(np.zeros((1, 1), np.uint8), [0], [0.0], [step % 7 == 6], [False])
    priorities = torch.rand(60, generator=rng) * 5
    priorities[10:20] = 0.0
    buffer.update_priorities(torch.arange(60), priorities)
    draws = [buffer.sample(500, rng=rng) for _ in range(100)]
    counts = torch.bincount(torch.cat([d.indices for d in draws]), minlength=60)
    shares = priorities.double() ** exponent
    shares[10:20] = 0.0
    assert (counts[10:20] == 0).all()
    kept = shares > 0
    expected = shares[kept] / shares[kept].sum() * counts.sum()
    assert chisquare(counts[kept].double(), expected).pvalue > 1e-3
    for batch in draws[:3]:
        powers = shares[batch.indices]
        weights = (powers.min() / powers) ** 1.0
        torch.testing.assert_close(batch.weights.double(), weights, atol=1e-5, rtol=1e-5)


def test_importance_weights_undo_the_priorities():
    buffer = ReplayBuffer((1,), capacity=100, priority_exponent=1.0)
    for _ in range(51):
        buffer.add(np.zeros((1, 1), np.uint8), [0], [0.0], [False], [False])
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    buffer.update_priorities(torch.arange(50), values.abs() + 0.1)
    rng = torch.Generator().manual_seed(0)
    batch = buffer.sample(20_000, rng=rng)
    mean = (batch.weights * values[batch.indices]).sum() / batch.weights.sum()
    assert mean.item() == pytest.approx(values.mean().item(), abs=0.02)


def test_equal_priorities_weigh_one():
    buffer, _, _ = made(40, capacity=50, priority_exponent=0.7)
    batch = buffer.sample(64, rng=torch.Generator().manual_seed(0))
    assert torch.equal(batch.weights, torch.ones(64))


def test_without_an_exponent_all_steps_are_equally_likely():
    buffer, reference, _ = made(40, capacity=50)
    batch = buffer.sample(20_000, rng=torch.Generator().manual_seed(0))
    counts = torch.bincount(batch.indices)[sorted(reference.drawable(1, 0))]
    assert chisquare(counts).pvalue > 1e-3
    assert torch.equal(batch.weights, torch.ones(20_000))


def test_new_steps_get_the_largest_priority_so_far():
    buffer, reference, stream = made(20, capacity=100, priority_exponent=1.0)
    drawn = buffer.sample(8, rng=torch.Generator().manual_seed(0)).indices
    buffer.update_priorities(drawn, torch.full((8,), 50.0))
    buffer.update_priorities(drawn, torch.full((8,), 1.0))
    for _ in range(20):
        add_to(buffer, reference, stream.row())
    batch = buffer.sample(2000, rng=torch.Generator().manual_seed(0))
    new = batch.indices >= 20
    drawable = reference.drawable(1, 0)
    num_new = len([i for i in drawable if i >= 20])
    old_power = len(drawable) - num_new
    assert new.float().mean().item() == pytest.approx(
        50 * num_new / (50 * num_new + old_power), abs=0.02
    )


def test_of_several_priorities_for_a_step_the_last_counts():
    buffer, reference, _ = made(21, capacity=100, priority_exponent=1.0)
    first, second, *others = sorted(reference.drawable(1, 0))
    buffer.update_priorities(torch.tensor(others), torch.zeros(len(others)))
    order = torch.tensor([first, second, first, second, first])
    buffer.update_priorities(order, torch.tensor([5.0, 1.0, 1.0, 0.0, 2.0]))
    assert set(buffer.sample(50).indices.tolist()) == {first}
    buffer.update_priorities(order, torch.tensor([0.0, 0.0, 9.0, 4.0, 0.0]))
    assert set(buffer.sample(50).indices.tolist()) == {second}


def test_without_any_priority_left_drawing_is_an_error():
    buffer, _, _ = made(21, capacity=100, priority_exponent=1.0)
    buffer.sample(4)
    buffer.update_priorities(torch.arange(21), torch.zeros(21))
    with pytest.raises(ValueError, match="all priorities are 0"):
        buffer.sample(4)
    buffer.update_priorities(torch.arange(21), torch.ones(21))
    assert len(buffer.sample(4).indices) == 4


def test_priorities_of_overwritten_steps_are_passed_over():
    buffer, reference, stream = made(30, capacity=20, priority_exponent=1.0, stack=2)
    before = buffer.state_dict()["powers"].clone()
    buffer.update_priorities(torch.tensor([0, 9, 5, 30]), torch.tensor([7.0, 0.0, 9.0, 3.0]))
    assert torch.equal(buffer.state_dict()["powers"], before)
    assert buffer.state_dict()["largest"].item() == 1.0
    add_to(buffer, reference, stream.row())
    assert set(buffer.sample(200).indices.tolist()) == reference.drawable(1, 0)


def test_the_same_seed_draws_the_same_batch_and_leaves_the_global_source_alone():
    buffer, _, _ = made(40, capacity=50, priority_exponent=0.5)
    state = torch.get_rng_state()
    first, second = (buffer.sample(16, rng=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rows", [25, 80])
@pytest.mark.parametrize("exponent", [None, 0.6])
@pytest.mark.parametrize("way", ["state", "file"])
def test_a_restored_buffer_goes_on_as_if_nothing_had_happened(tmp_path, rows, exponent, way):
    options = {"capacity": 60, "num_envs": 2, "stack": 3, "priority_exponent": exponent}
    buffer, reference, stream = made(rows, **options)
    draw = {"num_steps": 3, "window": 2}

    def learn(replay, seed):
        batch = replay.sample(32, rng=torch.Generator().manual_seed(seed), **draw)
        if exponent is not None:
            replay.update_priorities(batch.indices, batch.returns.abs())
        return batch

    learn(buffer, 0)
    if way == "file":
        buffer.save(tmp_path / "replay.safetensors")
        again = ReplayBuffer.load(tmp_path / "replay.safetensors")
        assert again.stack == 3
        assert again.priority_exponent == exponent
    else:
        again, _, _ = made(70, **options, seed=5)  # what it held is forgotten
        everything(again, **draw)
        again.load_state_dict({k: v.clone() for k, v in buffer.state_dict().items()})
    for seed in range(1, 40):
        row = stream.row()
        add_to(buffer, reference, row)
        add_to(again, Reference(2, 30, 3), row)
        mine, theirs = learn(buffer, seed), learn(again, seed)
        assert torch.equal(mine.indices, theirs.indices)
        assert torch.equal(mine.weights, theirs.weights)
        assert torch.equal(mine.window.observations, theirs.window.observations)
        assert torch.equal(mine.next_observations, theirs.next_observations)
    assert buffer.num_added == again.num_added


def test_a_file_holds_only_the_filled_part(tmp_path):
    buffer, _, _ = made(10, capacity=100_000)
    buffer.save(tmp_path / "replay.safetensors")
    assert (tmp_path / "replay.safetensors").stat().st_size < 5000


def test_a_state_of_another_buffer_is_refused_and_changes_nothing(tmp_path):
    buffer, _, _ = made(20, capacity=30)
    before = {k: v.clone() for k, v in buffer.state_dict().items()}
    for other in (
        made(40, capacity=60)[0],
        made(20, capacity=30, dtype=np.uint8)[0],
        made(20, capacity=30, priority_exponent=0.5)[0],
    ):
        with pytest.raises(ValueError, match="of another buffer"):
            buffer.load_state_dict(other.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in buffer.state_dict().items())


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "replay.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="not a whole file"):
        ReplayBuffer.load(path)
    with pytest.raises(FileNotFoundError):
        ReplayBuffer.load(tmp_path / "absent")


def test_single_frames_have_no_axis_for_stacking():
    buffer, _, _ = made(20, capacity=30)
    batch = buffer.sample(4, window=2)
    assert batch.observations.shape == (4, *SHAPE)
    assert batch.window.observations.shape == (4, 3, *SHAPE)
    assert batch.window.actions.shape == batch.window.mask.shape == (4, 2)


def test_bytes_stay_bytes():
    buffer, reference, _ = made(40, capacity=30, stack=4, dtype=np.uint8)
    batch = everything(buffer)
    assert batch.observations.dtype == torch.uint8
    check_batch(batch, reference, num_steps=1, discount=0.99, window=0)


def test_integer_rewards_and_read_only_observations_are_taken():
    buffer = ReplayBuffer((1,), capacity=10)
    frame = np.zeros((1, 1), np.uint8)
    frame.flags.writeable = False
    for _ in range(3):
        buffer.add(frame, np.int32([1]), np.int32([2]), [False], [False])
    assert buffer.sample(2).returns.tolist() == [2.0, 2.0]


GOOD = {
    "observations": np.zeros((2, 1), np.uint8),
    "actions": [0, 1],
    "rewards": [0.0, 1.0],
    "terminated": [False, False],
    "truncated": [False, False],
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"observations": np.zeros((2, 1), np.float32)}, TypeError, "are torch.float32"),
        ({"observations": np.zeros((2, 4, 1), np.uint8)}, ValueError, r"must be \[2, 1\]"),
        ({"observations": np.zeros((1, 1), np.uint8)}, ValueError, r"must be \[2, 1\]"),
        ({"actions": [0.5, 1.0]}, TypeError, "actions must be integers, got float64"),
        ({"actions": [0]}, ValueError, r"actions must be \[2\], got \[1\]"),
        ({"rewards": [0.0, np.nan]}, ValueError, r"rewards must be finite, got \[0.0, nan\]"),
        ({"rewards": 0.0}, ValueError, r"rewards must be \[2\], got \[\]"),
        ({"valid": [True]}, ValueError, r"valid must be \[2\], got \[1\]"),
    ],
)
def test_bad_steps_are_refused_by_name_and_change_nothing(change, error, text):
    buffer = ReplayBuffer((1,), capacity=10, num_envs=2)
    buffer.add(**GOOD)
    before = {k: v.clone() for k, v in buffer.state_dict().items()}
    with pytest.raises(error, match=text):
        buffer.add(**{"valid": [False, False], **GOOD, **change})
    assert all(torch.equal(v, before[k]) for k, v in buffer.state_dict().items())


def test_lists_strides_and_tensors_are_taken_alike():
    for frames in (
        np.arange(8, dtype=np.float64).reshape(2, 4)[::-1],
        [np.array([4.0, 5.0, 6.0, 7.0]), [0.0, 1.0, 2.0, 3.0]],
        torch.arange(8.0).view(2, 4).flip(0),
    ):
        buffer = ReplayBuffer((4,), capacity=10, num_envs=2, dtype=torch.float32)
        buffer.add(frames, **{k: v for k, v in GOOD.items() if k != "observations"})
        assert buffer.state_dict()["frames"].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"capacity": 0}, ValueError, "capacity must satisfy 2 <="),
        ({"capacity": 1e6}, TypeError, "capacity must be an integer"),
        ({"num_envs": 0}, ValueError, "num_envs must satisfy 1 <="),
        ({"stack": 0}, ValueError, "stack must satisfy 1 <="),
        ({"dtype": torch.complex64}, ValueError, "dtype must be one of uint8, int8"),
        ({"priority_exponent": -1.0}, ValueError, "priority_exponent must satisfy 0.0 <="),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, text):
    with pytest.raises(error, match=text):
        ReplayBuffer((1,), **{"capacity": 10, **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 0}, "batch_size must satisfy 1 <="),
        ({"num_steps": 0}, "num_steps must satisfy 1 <="),
        ({"num_steps": 30}, "look at 31 steps of an environment, the buffer keeps 30"),
        ({"window": -1}, "window must satisfy 0 <="),
        ({"discount": 1.1}, "discount must satisfy"),
        ({"importance_exponent": -0.1}, "importance_exponent must satisfy"),
    ],
)
def test_bad_draws_are_refused_by_name(change, text):
    buffer, _, _ = made(20, capacity=30)
    with pytest.raises(ValueError, match=text):
        buffer.sample(**{"batch_size": 4, **change})


def test_bad_priorities_are_refused_by_name():
    buffer, _, _ = made(20, capacity=30, priority_exponent=0.5)
    indices = torch.arange(2)
    for bad in ([-1.0, 1.0], [torch.nan, 1.0], [torch.inf, 1.0]):
        with pytest.raises(ValueError, match="priorities must be finite and not negative"):
            buffer.update_priorities(indices, torch.tensor(bad))
    with pytest.raises(ValueError, match=r"must be \[batch\], got \[2\] and \[3\]"):
        buffer.update_priorities(indices, torch.ones(3))
    uniform, _, _ = made(20, capacity=30)
    with pytest.raises(ValueError, match="draws uniformly"):
        uniform.update_priorities(indices, torch.ones(2))


def test_an_empty_buffer_says_so():
    with pytest.raises(ValueError, match="no step of the 0 stored can be drawn"):
        ReplayBuffer((1,), capacity=10).sample(1)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    buffer, _, _ = made(40, capacity=60, stack=4, priority_exponent=0.5, device="cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    buffer.sample(32, num_steps=3, window=5, rng=rng)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = buffer.sample(32, num_steps=3, window=5, rng=rng)
        buffer.update_priorities(batch.indices, batch.returns.abs())
        buffer.sample(32, num_steps=3, window=5, rng=rng)
    finally:
        torch.cuda.set_sync_debug_mode("default")
