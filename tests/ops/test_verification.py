"""The eager form of verification from raw logits: the rules, with the noise where it belongs."""

import pytest
import torch

from selftrain.kernels._dispatch import INTERPRETED
from selftrain.ops.philox import Stream, gumbel, uniform
from selftrain.ops.verification import RULES, sample_tokens, verify_draft
from selftrain.ops.verify import verify_block, verify_coupled, verify_greedy, verify_tokens
from selftrain.ops.warp import inverse_cdf, warp_logits

WARP = {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02}


def block(batch=6, drafted=3, vocab=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    target = 2 * torch.randn(batch, drafted + 1, vocab, generator=rng)
    draft = target[:, :-1] + 0.5 * torch.randn(batch, drafted, vocab, generator=rng)
    tokens = warp_logits(draft, **WARP).softmax(-1).flatten(0, 1)
    tokens = torch.multinomial(tokens, 1, generator=rng).view(batch, drafted)
    seeds = torch.randint(2**62, (batch,), generator=rng)
    return target, draft, tokens, {"seeds": seeds, "starts": torch.arange(batch) * 7}


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("rule", "verify"), [("token", verify_tokens), ("block", verify_block)])
def test_noise_is_keyed_by_the_start_of_the_block_and_the_slot(rule, verify):
    target, draft, tokens, address = block()
    u = {
        stream: torch.stack(
            [
                uniform(address["seeds"], stream=stream, position=address["starts"], slot=slot)
                for slot in range(4)
            ],
            1,
        )
        for stream in (Stream.ACCEPT, Stream.EMIT)
    }
    want = verify(
        warp_logits(target, **WARP),
        warp_logits(draft, **WARP),
        tokens,
        accept_uniforms=u[Stream.ACCEPT][:, :3],
        emit_uniforms=u[Stream.EMIT],
    )
    assert_same(verify_draft(target, draft, tokens, rule=rule, **address, **WARP), want)


def test_coupled_noise_belongs_to_the_position():
    target, draft, tokens, address = block()
    noise = torch.stack(
        [
            gumbel(address["seeds"], position=address["starts"] + place, vocab_size=20)
            for place in range(4)
        ],
        1,
    )
    want = verify_coupled(warp_logits(target, **WARP), tokens, gumbel=noise)
    assert_same(verify_draft(target, draft, tokens, rule="coupled", **address, **WARP), want)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_greedy_at_temperature_zero(rule):
    target, draft, tokens, address = block()
    got = verify_draft(target, draft, tokens, rule=rule, temperature=0.0, **address)
    assert_same(got, verify_greedy(target, tokens))


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_a_temperature_for_each_row_is_that_rows_temperature(rule):
    target, draft, tokens, address = block(batch=3)
    temperatures = [0.5, 1.0, 2.0]
    got = verify_draft(
        target, draft, tokens, rule=rule, temperature=torch.tensor(temperatures), **address
    )
    for row, temperature in enumerate(temperatures):
        one = slice(row, row + 1)
        want = verify_draft(
            target[one],
            draft[one],
            tokens[one],
            rule=rule,
            temperature=temperature,
            seeds=address["seeds"][one],
            starts=address["starts"][one],
        )
        assert_same([part[one] for part in got], want)


def test_a_row_without_a_positive_temperature_has_no_law():
    target, draft, tokens, address = block(batch=2)
    got = verify_draft(
        target, draft, tokens, rule="token", temperature=torch.tensor([0.0, 1.0]), **address
    )
    assert got.next_tokens[0] == -1
    assert got.next_tokens[1] >= 0


def test_sampling_is_warping_and_inverse_cdf():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    seeds, positions = torch.arange(5), torch.arange(5) * 3
    u = uniform(seeds, stream=Stream.DRAFT, position=positions, slot=2)
    want = inverse_cdf(warp_logits(logits, **WARP).softmax(-1), u)
    address = {"seeds": seeds, "positions": positions, "stream": Stream.DRAFT, "slot": 2}
    assert torch.equal(sample_tokens(logits, **address, **WARP), want)
    assert torch.equal(sample_tokens(logits, **address, temperature=0.0), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_from_no_law_gives_minus_one(temperature):
    logits = torch.tensor([[torch.nan, 0.0], [-torch.inf, -torch.inf], [0.0, 1.0]])
    seeds = torch.zeros(3, dtype=torch.int64)
    tokens = sample_tokens(logits, seeds=seeds, positions=seeds, stream=0, temperature=temperature)
    assert tokens[:2].tolist() == [-1, -1]
    assert tokens[2] >= 0


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"rule": "best"}, "rule"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 1.0}, "min_p"),
        ({"backend": "cuda"}, "backend"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_shape_checks")
def test_bad_parameters_are_named(bad, name):
    target, draft, tokens, address = block()
    with pytest.raises(ValueError, match=name):
        verify_draft(target, draft, tokens, **{"rule": "token", **address, **bad})


@pytest.mark.usefixtures("without_shape_checks")
def test_different_vocabularies_are_refused():
    target, draft, tokens, address = block()
    with pytest.raises(ValueError, match="20 logits"):
        verify_draft(target, draft[..., :18], tokens, rule="token", **address)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on the CPU")
def test_triton_on_the_cpu_is_an_error_that_says_what_to_do():
    target, draft, tokens, address = block()
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        verify_draft(target, draft, tokens, rule="token", backend="triton", **address)


def test_triton_refuses_float64():
    target, draft, tokens, address = block()
    with pytest.raises(ValueError, match="float64"):
        verify_draft(
            target.double(), draft.double(), tokens, rule="token", backend="triton", **address
        )


@pytest.mark.parametrize("rule", ["greedy", "coupled"])
@pytest.mark.usefixtures("without_shape_checks")
def test_the_eager_form_compiles_as_one_graph(rule):
    target, draft, tokens, address = block()

    def verify(target, draft, tokens, seeds, starts):
        return verify_draft(target, draft, tokens, rule=rule, seeds=seeds, starts=starts)

    arguments = (target, draft, tokens, address["seeds"], address["starts"])
    compiled = torch.compile(verify, fullgraph=True, backend="eager")(*arguments)
    assert_same(compiled, verify(*arguments))
