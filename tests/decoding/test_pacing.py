"""The pacer on a simulated machine, where prices and acceptance are known."""

import random

import pytest

from selftrain.decoding.pacing import AutoPacer, FixedPacer

NUM_TOKENS = 512
PRICES = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]  # of a draft token, where a plain step costs 1


def decode(pacer, acceptance, price, *, seed, catch_up=0.0, hiccups=0.05, rows=1, scale=None):
    """Return the time, hiccups not counted, in which every row gains ``NUM_TOKENS``.

    The pacer sees times with hiccups: each block takes longer by a random share.
    ``catch_up`` is what the draft's first forward after plain steps costs besides; ``scale`` is
    what a plain step costs with so many tokens done.
    """
    rng, clock, done, plain = random.Random(seed), 0.0, 0, 0
    while done < NUM_TOKENS:
        num = min(pacer.next(), NUM_TOKENS - done - 1)
        seconds = 1 + num * price + (catch_up if num and plain else 0.0)
        seconds *= 1.0 if scale is None else scale(done)
        plain = 0 if num else plain + 1
        accepted = 0
        while accepted < num and rng.random() < acceptance:
            accepted += 1
        done, clock = done + accepted + 1, clock + seconds
        tested = min(accepted + 1, num)
        pacer.observe(
            num,
            seconds * (1 + hiccups * rng.expovariate(1)),
            num_rows=rows if scale is None else round(8 * scale(done)),
            num_emitted=(accepted + 1) * (rows if scale is None else round(8 * scale(done))),
            num_tested=tested,
            overlap=acceptance * tested,
        )
    return clock


def mean_time(acceptance, price, *, num=None, num_seeds=6, **machine):
    times = [
        decode(
            AutoPacer() if num is None else FixedPacer(num), acceptance, price, seed=s, **machine
        )
        for s in range(num_seeds)
    ]
    return sum(times) / len(times)


@pytest.mark.parametrize("acceptance", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99])
def test_it_is_never_much_slower_than_plain_decoding(acceptance):
    """On average over hiccups: a single run may take 3 % more."""
    for price in PRICES:
        assert mean_time(acceptance, price) <= 1.02 * NUM_TOKENS


@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.7, 0.9, 0.95])
def test_where_drafting_pays_it_comes_near_the_best_number(acceptance):
    for price in PRICES[:4]:
        best = min(mean_time(acceptance, price, num=k, num_seeds=2) for k in range(1, 17))
        assert mean_time(acceptance, price) <= best / 0.9


def test_the_price_of_catching_up_does_not_spoil_the_estimates():
    """A first draft forward that costs as much as a plain step: it is paid, and forgotten."""
    best = min(mean_time(0.9, 0.05, num=k, num_seeds=2) for k in range(1, 17))
    assert mean_time(0.9, 0.05, catch_up=1.0) <= best / 0.85


def test_a_draft_that_never_pays_is_dropped_after_few_tries():
    pacer, asked = AutoPacer(), []
    for _ in range(200):
        num = pacer.next()
        asked.append(num)
        pacer.observe(
            num, 1.0 + num, num_rows=1, num_emitted=1, num_tested=min(num, 1), overlap=0.01 * num
        )
    assert sum(num > 0 for num in asked) <= 6
    assert asked[:3] == [0, 0, 0]


def test_rows_that_leave_make_plain_steps_cheaper_and_drafting_no_worse():
    """Half the rows leave in the middle, and everything costs half: no debt may come of that."""
    scale = lambda done: 1.0 if done < NUM_TOKENS / 2 else 0.5  # noqa: E731
    plain = 0.75 * NUM_TOKENS
    for acceptance, price in ((0.05, 0.5), (0.5, 1.0), (0.9, 0.1)):
        assert mean_time(acceptance, price, scale=scale) <= 1.02 * plain
    assert mean_time(0.9, 0.1, scale=scale) <= 0.6 * plain


def test_it_tries_again_after_a_while():
    """A draft that is useless at first and good later is found out."""
    pacer, late = AutoPacer(), []
    for step in range(1500):
        num = pacer.next()
        good = step > 300
        pacer.observe(
            num,
            1 + 0.1 * num,
            num_rows=1,
            num_emitted=num + 1 if good else 1,
            num_tested=num if good else min(num, 1),
            overlap=float(num) if good else 0.0,
        )
        late.append(num)
    assert max(late[:300]) <= 4
    assert min(late[-100:]) >= 4


def test_a_fixed_number_stays():
    pacer = FixedPacer(3)
    pacer.observe(3, 9.0, num_rows=1, num_emitted=1, num_tested=1, overlap=0.0)
    assert pacer.next() == pacer.max_draft_tokens == 3
