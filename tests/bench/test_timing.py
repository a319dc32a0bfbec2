import time

import numpy as np
import pytest
import torch

from selftrain.bench.timing import milliseconds, pinned_threads, quartiles, take_turns

CPU = torch.device("cpu")


@pytest.mark.parametrize("values", [[3.0], [1.0, 4.0], [5.0, 1.0, 2.0], [4.0, 1.0, 3.0, 2.0, 9.0]])
def test_quartiles_are_those_of_numpy(values):
    found = quartiles(values)
    assert [found.low, found.median, found.high] == pytest.approx(
        np.percentile(values, [25, 50, 75])
    )


def test_no_values_have_no_quartiles():
    with pytest.raises(ValueError, match="values is empty"):
        quartiles([])


def test_every_round_begins_with_another_method_and_the_first_round_is_dropped():
    order = []
    methods = {name: lambda turn, n=name: order.append((turn, n)) for name in "abc"}
    runs = take_turns(methods, rounds=3, device=CPU)
    assert [len(timed) for timed in runs.values()] == [3, 3, 3]
    by_round = ["".join(n for t, n in order if t == turn) for turn in (-1, 0, 1, 2)]
    assert by_round == ["cab", "abc", "bca", "cab"]


def test_what_is_between_rounds_is_called_after_each():
    seen = []
    methods = {"a": lambda turn: seen.append(f"a{turn}")}
    take_turns(methods, rounds=2, device=CPU, between=lambda turn: seen.append(f"between{turn}"))
    assert seen == ["a-1", "between-1", "a0", "between0", "a1", "between1"]


def test_the_methods_of_a_round_meet_the_same_noise_and_rounds_differ():
    methods = {name: lambda turn: torch.rand(3).tolist() for name in "ab"}
    before = torch.random.get_rng_state()
    runs = take_turns(methods, rounds=2, device=CPU, seed=5)
    drawn = {name: [t.result for t in timed] for name, timed in runs.items()}
    assert drawn["a"] == drawn["b"]
    assert drawn["a"][0] != drawn["a"][1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_times_are_those_of_the_call():
    runs = take_turns({"nap": lambda _: time.sleep(0.02)}, rounds=1, device=CPU)
    assert runs["nap"][0].seconds >= 0.02
    assert runs["nap"][0].peak_bytes is None
    assert milliseconds(lambda: time.sleep(0.02), CPU) >= 20


def test_threads_are_pinned_and_restored():
    before = torch.get_num_threads()
    with pinned_threads(before + 1) as num:
        assert num == before + 1 == torch.get_num_threads()
    assert torch.get_num_threads() == before
    with pinned_threads(None) as num:
        assert num == before


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="threads"), pinned_threads(0):
        pass
