"""Long texts: which ways to key the noise bias the law, and what the engine's keying does."""

import math

import pytest
import torch

from selftrain.decoding import SamplingParams, SpeculativeDecoder
from selftrain.decoding.proof import (
    FAULTY_KEYINGS,
    Drafting,
    Keying,
    block_outcomes,
    compare_counts,
    count_texts,
    emitted_per_block,
    fixed_model,
    measure_reuse,
    random_model,
    sequence_law,
    simulate,
)
from selftrain.ops import gumbel, inverse_cdf, uniform, verify_block, verify_tokens

P, Q = (0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)
RULES = {"token": verify_tokens, "block": verify_block}
# 130 000 tokens: enough for all reuse but that of the accept noise alone.
SHORT = {"num_rows": 1500, "num_tokens": 120}


# Reuse of noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "want"), [("token", 2.176), ("block", 2.346)])
def test_fresh_noise_keeps_the_law(rule, want):
    reuse = measure_reuse(RULES[rule], **SHORT)
    assert reuse.tokens.p_value > 1e-3
    assert reuse.pairs.p_value > 1e-3
    assert reuse.tokens_per_block == pytest.approx(want, abs=0.015)


@pytest.mark.parametrize(
    ("name", "law", "tokens_per_block"),
    [
        ("draft noise by position", (0.1095, 0.205, 0.287, 0.399), 2.157),
        ("accept and draft noise by position", (0.1095, 0.199, 0.290, 0.401), 2.13),
    ],
)
def test_noise_by_position_biases_the_block_rule_alone(name, law, tokens_per_block):
    """The laws are those of 200 blocks; these texts have 50, so they are a little off."""
    reuse = measure_reuse(verify_block, keying=FAULTY_KEYINGS[name], **SHORT)
    assert reuse.sigmas > 8
    assert reuse.law == pytest.approx(law, abs=0.007)
    assert reuse.tokens_per_block == pytest.approx(tokens_per_block, abs=0.02)
    harmless = measure_reuse(verify_tokens, keying=FAULTY_KEYINGS[name], **SHORT)
    assert harmless.sigmas < 3.5


@pytest.mark.slow
def test_every_faulty_keying_lies_more_than_eight_sigmas_out_and_the_engines_does_not():
    """With texts long enough for the smallest bias, 0.0036: accept noise by position."""
    laws = {
        "accept noise by position": ((0.100, 0.1965, 0.302, 0.401), 2.333),
        "draft noise by position": ((0.1095, 0.205, 0.287, 0.399), 2.157),
        "accept and draft noise by position": ((0.1095, 0.199, 0.290, 0.401), 2.13),
    }
    for name, keying in FAULTY_KEYINGS.items():
        reuse = measure_reuse(verify_block, keying=keying)
        assert reuse.tokens.sigmas > 8, name
        assert reuse.pairs.sigmas > 8, name
        if name in laws:
            assert reuse.law == pytest.approx(laws[name][0], abs=0.0012), name
            assert reuse.tokens_per_block == pytest.approx(laws[name][1], abs=0.004), name
    reuse = measure_reuse(verify_block)
    assert reuse.tokens_per_block == pytest.approx(2.346, abs=0.004)
    assert reuse.sigmas < 3.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [1, 3])
def test_a_draft_and_an_emission_of_one_uniform_give_the_closed_form(rule, k):
    """First tokens: the uniform that drew a rejected token, u < 0.7, also draws its substitute.

    Token 0 (u < .4) falls with 3/4, token 1 (u < .7) with 1/3; the substitute is token 2 for
    u < .25, else 3: .2 + .25 * .75 = .3875, and .3125.
    """
    walk = simulate(
        RULES[rule],
        fixed_model(P),
        fixed_model(Q),
        num_draft_tokens=k,
        num_tokens=1,
        num_rows=40_000,
        keying=Keying(shared=True),
    )
    counts = count_texts(walk.tokens, 4)
    if k == 1 or rule == "token":
        want = torch.tensor([0.1, 0.2, 0.3875, 0.3125], dtype=torch.float64)
        assert compare_counts(counts, want).p_value > 1e-3
    assert compare_counts(counts, torch.tensor(P, dtype=torch.float64)).sigmas > 8


def test_a_draft_and_an_emission_of_one_gumbel_noise_give_theirs():
    """First tokens (.1, .2, .2667, .4333): exactly 4/15 and 13/30 for the last two."""
    n = 100_000
    seeds = torch.arange(n)
    noise = gumbel(seeds, position=0, vocab_size=4, dtype=torch.float64)
    p, q = (torch.tensor(law, dtype=torch.float64) for law in (P, Q))
    drafted = (q.log() + noise).argmax(1)
    stands = uniform(seeds, stream=1, position=0) < (p / q)[drafted]
    substitute = ((p - q).clamp(min=0).log() + noise).argmax(1)
    first = torch.where(stands, drafted, substitute)
    want = torch.tensor([1 / 10, 1 / 5, 4 / 15, 13 / 30], dtype=torch.float64)
    assert compare_counts(first.bincount(minlength=4), want).p_value > 1e-3
    assert compare_counts(first.bincount(minlength=4), p).sigmas > 8


@pytest.mark.parametrize("rule", RULES)
def test_the_joint_law_over_several_blocks_of_models_with_memory_is_the_targets(rule):
    """Six tokens in two to six blocks, all 729 texts; a false alarm in 1000 seeds."""
    target, draft = random_model(3, seed=31), random_model(3, seed=32)
    walk = simulate(RULES[rule], target, draft, num_draft_tokens=2, num_tokens=6, num_rows=60_000)
    assert compare_counts(count_texts(walk.tokens, 3), sequence_law(target, 6)).p_value > 1e-3
    wrong = compare_counts(count_texts(walk.tokens, 3), sequence_law(random_model(3, seed=33), 6))
    assert wrong.sigmas > 8


def test_a_walk_is_a_draw_for_each_seed_whatever_the_other_rows():
    models = random_model(3, seed=1), random_model(3, seed=2)
    lengths = {"num_draft_tokens": 2, "num_tokens": 9}
    together = simulate(verify_block, *models, **lengths, num_rows=8, seed=5)
    for row in range(8):
        alone = simulate(verify_block, *models, **lengths, num_rows=1, seed=5 + row)
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_walks_without_drafts_are_plain_sampling():
    target = fixed_model(P)
    walk = simulate(verify_tokens, target, target, num_draft_tokens=0, num_tokens=3, num_rows=50)
    noise = uniform(torch.arange(50).unsqueeze(1), stream=0, position=torch.arange(3))
    want = inverse_cdf(target.probs[0].expand(50, 3, 4), noise)
    assert torch.equal(walk.tokens, want)
    assert walk.tokens_per_block == 1


# The engine ---------------------------------------------------------------------------------------


def set_law(model, law):
    """Make a Llama give one law everywhere: every token has the same embedding."""
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[1:2].expand(4, -1))
        hidden = model.model(torch.zeros(1, 1, dtype=torch.long)).last_hidden_state[0, 0]
        logits = torch.tensor(law, dtype=hidden.dtype).log()
        model.lm_head.weight.copy_(logits.unsqueeze(1) * hidden / hidden.square().sum())
    return model


@pytest.fixture(scope="module")
def context_free_pair(make_llama):
    """A target of the law P and a draft of the law Q, whatever came before."""
    shape = {
        "vocab_size": 4,
        "tie_word_embeddings": False,
        "num_hidden_layers": 1,
        "max_position_embeddings": 256,
    }
    return [set_law(make_llama(**shape, seed=i).double(), law) for i, law in enumerate((P, Q))]


@pytest.mark.parametrize("rule", RULES)
def test_the_engine_draws_its_noise_as_the_kit_says(context_free_pair, rule):
    """Token for token, up to where the engine drafts less since the text ends."""
    n, length, k = 64, 24, 3
    decoder = SpeculativeDecoder(*context_free_pair, num_draft_tokens=k, verifier=rule)
    output = decoder.generate(
        torch.tensor([[1, 2]]).expand(n, -1),
        params=SamplingParams(max_new_tokens=length),
        eos_token_ids=(),
        seeds=list(range(n)),
    )
    walk = simulate(
        RULES[rule],
        fixed_model(P),
        fixed_model(Q),
        num_draft_tokens=k,
        num_tokens=length,
        num_rows=n,
        first_position=2,
    )
    assert torch.equal(output.sequences[:, 2 : 2 + length - k], walk.tokens[:, : length - k])


def test_long_texts_of_the_engine_are_independent_draws_of_the_targets_law(context_free_pair):
    """What noise by position would bias by 7 standard deviations: 56 320 tokens past the start."""
    n, length, burn_in = 512, 130, 20
    output = SpeculativeDecoder(*context_free_pair, num_draft_tokens=3).generate(
        torch.zeros(n, 1, dtype=torch.long),
        params=SamplingParams(max_new_tokens=length, seed=0),
        eos_token_ids=(),
    )
    kept = output.sequences[:, 1 + burn_in :]
    p = torch.tensor(P, dtype=torch.float64)
    assert compare_counts(count_texts(kept.reshape(-1, 1), 4), p).p_value > 1e-3
    pairs = count_texts(kept.reshape(-1, 2), 4)
    assert compare_counts(pairs, torch.outer(p, p)).p_value > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_the_engine_accepts_as_often_as_the_exact_law_of_a_block_says(context_free_pair, rule):
    """One block of three drafted tokens a row: the mean within four standard errors."""
    n = 5000
    decoder = SpeculativeDecoder(*context_free_pair, num_draft_tokens=3, verifier=rule)
    output = decoder.generate(
        torch.zeros(n, 1, dtype=torch.long),
        params=SamplingParams(max_new_tokens=4, seed=0),
        eos_token_ids=(),
        return_blocks=True,
    )
    first = {}
    for block in output.blocks:
        first.setdefault(block.row, block)
    accepted = torch.tensor([block.num_accepted for block in first.values()]).double()
    exact = block_outcomes(
        RULES[rule],
        fixed_model(P),
        fixed_model(Q),
        Drafting(num_draft_tokens=3),
        torch.zeros(1, 0, dtype=torch.long),
    )
    want = emitted_per_block(exact) - 1
    assert abs(accepted.mean() - want) < 4 * accepted.std() / math.sqrt(n)
    stats = output.stats
    assert stats.analytic_acceptance == pytest.approx(0.6, abs=1e-9)
    if rule == "token":  # the block rule accepts more often than each token's own test would
        sigma = math.sqrt(0.6 * 0.4 / stats.num_tested)
        assert abs(stats.acceptance_rate - 0.6) < 4 * sigma


@pytest.mark.parametrize("end", [(), (1,), (0, 3)])
def test_blocks_add_up_to_what_was_emitted_before_it_was_cut(context_free_pair, end):
    """The sum over blocks of accepted tokens and one; what follows an end in its block is cut."""
    output = SpeculativeDecoder(*context_free_pair, num_draft_tokens=4).generate(
        torch.tensor([[2, 2, 2], [0, 2, 2], [0, 0, 2]]).repeat(10, 1),
        attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]]).repeat(10, 1),
        params=SamplingParams(max_new_tokens=17, seed=4),
        eos_token_ids=end,
        return_blocks=True,
    )
    emitted = [0] * 30
    cut = 0
    for row, text in enumerate(output.new_tokens()):
        replayed = [
            token
            for block in output.blocks
            if block.row == row
            for token in (*block.drafted[: block.num_accepted], block.next_token)
        ]
        ends = [i for i, token in enumerate(replayed) if token in end]
        want = replayed[: ends[0] + 1] if ends else replayed
        assert text == want
        emitted[row] = len(replayed)
        cut += len(replayed) - len(text)
    stats = output.stats
    assert sum(emitted) == stats.num_accepted + stats.num_target_calls
    assert stats.num_target_calls == len(output.blocks)
    assert cut == 0 if not end else cut > 0
    assert stats.num_drafted == sum(len(block.drafted) for block in output.blocks)
