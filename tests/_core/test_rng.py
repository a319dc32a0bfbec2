"""One seed, many independent sources."""

import hashlib
import itertools

import pytest
import torch

from selftrain._core.rng import derive, seeded_torch, split, torch_generator


def test_a_derived_seed_is_the_hash_of_the_written_path():
    # Pinned: another definition would break the resuming of every saved run.
    digest = hashlib.blake2b(b"(0, 'batch', 3)", digest_size=8).digest()
    assert derive(0, "batch", 3) == int.from_bytes(digest, "little") // 2


def test_different_paths_give_different_seeds():
    paths = [
        (),
        ("a",),
        ("b",),
        (1,),
        ("1",),
        ("a", 1),
        (1, "a"),
        ("a", "b"),
        ("a/b",),
        ("a', 'b",),
        ("ab",),
        *((("batch", i)) for i in range(1000)),
    ]
    seeds = [derive(seed, *path) for seed, path in itertools.product((0, 1, 2**62), paths)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_bit_of_a_derived_seed_is_a_fair_coin():
    seeds = [derive(5, "bits", i) for i in range(4096)]
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 2048) < 5 * 32  # five standard deviations of Binomial(4096, 1/2)


def test_split_gives_distinct_seeds_that_do_not_depend_on_their_number():
    assert split(3, 10)[:4] == split(3, 4)
    assert len(set(split(3, 100))) == 100


def test_generators_of_one_path_agree():
    first, second = (torch_generator(1, "x", 2) for _ in range(2))
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))


def test_seeding_torch_inside_a_block_leaves_the_outside_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded_torch(2, "init"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded_torch(2, "init"):
        assert torch.equal(torch.rand(3), inside)


def test_the_outside_is_restored_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded_torch(2):  # noqa: PT012
        torch.rand(3)
        raise RuntimeError("x")
    assert torch.equal(torch.get_rng_state(), before)
