"""Oracles: enumeration, closed forms, the decoder itself, and a slow way to compute the same."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.decoding import (
    SamplingParams,
    SpeculativeDecoder,
    expected_tokens,
    predict_block_efficiency,
)
from selftrain.distill import DraftEvaluator, draft_quality, target_texts
from selftrain.training import TokenRow

PARAMS = SamplingParams(max_new_tokens=24)
PROMPTS = [[5 + i % 40, 6 + i % 37] for i in range(160)]


def blend(draft, target, share):
    with torch.no_grad():
        for a, b in zip(draft.parameters(), target.parameters(), strict=True):
            a.mul_(1 - share).add_(b, alpha=share)
    return draft


@pytest.fixture(scope="module")
def pair(make_llama):
    target = make_llama(sharpness=2.2)
    target.generation_config.eos_token_id = None
    return target, blend(make_llama(sharpness=2.2, seed=1), target, 0.7)


@pytest.fixture(scope="module")
def t5_pair(make_model):
    target = make_model("t5", sharpness=1.3)
    draft = make_model("t5", sharpness=1.3)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in draft.parameters():
            p.add_(torch.randn(p.shape, generator=rng) * p.std().nan_to_num() * 0.2)
    return target, draft


def texts_of(target, prompts=PROMPTS, params=PARAMS):
    written = target_texts(target, prompts, params=params, seed=0, batch_size=80)
    return [
        TokenRow(prompt_ids=tuple(p), completion_ids=tuple(t))
        for p, t in zip(prompts, written, strict=True)
    ]


# What the recursion claims, by enumeration -------------------------------------------------------


def calls_by_outcomes(accept, num_draft_tokens):
    """Average over every outcome of every acceptance the number of blocks that write the text."""
    mean = 0.0
    for stands in itertools.product((True, False), repeat=len(accept)):
        weight = math.prod(a if s else 1 - a for a, s in zip(accept, stands, strict=True))
        t = calls = 0
        while t < len(accept):
            run = 0
            while run < num_draft_tokens and t + run < len(accept) and stands[t + run]:
                run += 1
            t, calls = t + run + 1, calls + 1
        mean += weight * calls
    return mean


@pytest.mark.parametrize("num_draft_tokens", [0, 1, 2, 5, 9])
def test_whole_texts_take_the_calls_that_enumeration_finds(num_draft_tokens):
    texts = [[0.9, 0.2, 0.7, 1.0, 0.0, 0.6], [0.5, 0.8], [0.3]]
    tensors = [torch.tensor(t, dtype=torch.float64) for t in texts]
    calls = sum(calls_by_outcomes(t, num_draft_tokens) for t in texts)
    predicted = predict_block_efficiency(tensors, num_draft_tokens, whole_texts=True)
    assert predicted == pytest.approx(9 / calls, rel=1e-12)


def test_given_a_text_its_tokens_came_from_the_draft_independently():
    """Token verification of a Markov chain, enumerated over drafts, verdicts and residuals."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.4, 0.4, 0.2]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.1, 0.4], [0.3, 0.3, 0.4], [0.2, 0.7, 0.1]], dtype=torch.float64)
    length, num_draft_tokens = 4, 2

    def block(last, left, drafted):
        """Mean calls to write ``left`` more tokens, ``drafted`` of the current block's standing."""
        if left == 0:
            return 0.0
        if drafted == num_draft_tokens:  # the target's own token ends the block
            return sum(float(p[last, y]) * new_block(y, left - 1) for y in range(3))
        total = 0.0
        residual = (p[last] - q[last]).clamp(min=0)
        for x in range(3):
            accept = min(1.0, float(p[last, x] / q[last, x]))
            total += float(q[last, x]) * accept * block(x, left - 1, drafted + 1)
            if accept < 1:
                for y in range(3):
                    share = float(residual[y] / residual.sum())
                    rejected = float(q[last, x]) * (1 - accept) * share
                    total += rejected * new_block(y, left - 1)
        return total

    def new_block(last, left):
        return 1.0 + block(last, left, 0) if left else 0.0

    mean_calls = 0.0
    for text in itertools.product(range(3), repeat=length):
        before = (0, *text[:-1])
        weight = math.prod(float(p[a, b]) for a, b in zip(before, text, strict=True))
        ratios = [min(1.0, float(q[a, b] / p[a, b])) for a, b in zip(before, text, strict=True)]
        efficiency = predict_block_efficiency(
            [torch.tensor(ratios, dtype=torch.float64)], num_draft_tokens, whole_texts=True
        )
        mean_calls += weight * length / efficiency
    assert mean_calls == pytest.approx(new_block(0, length), rel=1e-12)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(0, 9),
)
def test_no_text_gives_more_than_the_block_and_the_targets_token(texts, num_draft_tokens):
    tensors = [torch.tensor(t, dtype=torch.float64) for t in texts]
    tau = predict_block_efficiency(tensors, num_draft_tokens, whole_texts=True)
    assert 1 - 1e-9 <= tau <= num_draft_tokens + 1 + 1e-9


@pytest.mark.parametrize("acceptance", [0.3, 0.8, 0.95])
def test_the_formula_is_the_mean_of_simulated_blocks(acceptance):
    rng = torch.Generator().manual_seed(0)
    stands = torch.rand(100_000, 7, generator=rng) < acceptance
    tokens = stands.long().cumprod(1).sum(1).double() + 1
    error = 3 * float(tokens.std()) / math.sqrt(len(tokens))
    assert expected_tokens(acceptance, 7) == pytest.approx(float(tokens.mean()), abs=error)


# Against the decoder ------------------------------------------------------------------------------


def test_overlap_is_the_frequency_of_acceptance(pair):
    """Of the first proposal after each prompt, where no earlier verdict selects the contexts."""
    target, draft = pair
    prompts = PROMPTS[:40] * 50
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=1, verifier="token")
    stats = decoder.generate(
        torch.tensor(prompts), params=SamplingParams(max_new_tokens=2), seeds=range(len(prompts))
    ).stats
    firsts = [TokenRow(prompt_ids=tuple(p), completion_ids=(3,)) for p in PROMPTS[:40]]
    alpha = draft_quality(target, draft, firsts).acceptance
    # Blocks that begin at the last token have no room to propose.
    assert stats.num_tested == len(prompts)
    error = 3 * math.sqrt(alpha * (1 - alpha) / stats.num_tested)
    assert stats.acceptance_rate == pytest.approx(alpha, abs=error)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("num_draft_tokens", [2, 7])
def test_block_efficiency_is_the_decoders_within_three_percent(pair, temperature, num_draft_tokens):
    target, draft = pair
    params = SamplingParams(max_new_tokens=32, temperature=temperature)
    prompts = PROMPTS[:40] if temperature == 0 else PROMPTS * 3
    quality = draft_quality(
        target,
        draft,
        texts_of(target, prompts, params),
        params=params,
        num_draft_tokens=num_draft_tokens,
    )
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=num_draft_tokens, verifier="token")
    stats = decoder.generate(torch.tensor(prompts), params=params, seeds=range(len(prompts))).stats
    assert 1.2 < stats.block_efficiency < num_draft_tokens + 0.9
    rel = 1e-9 if temperature == 0 else 0.03  # greedy decoding writes the very texts
    assert quality.block_efficiency == pytest.approx(stats.block_efficiency, rel=rel)


def test_block_efficiency_of_an_encoder_decoder_is_the_decoders(t5_pair):
    target, draft = t5_pair
    params = SamplingParams(max_new_tokens=12)
    prompts = [[5 + i % 40, 6 + i % 37, 1] for i in range(300)]
    quality = draft_quality(
        target, draft, texts_of(target, prompts, params), params=params, num_draft_tokens=3
    )
    output = SpeculativeDecoder(target, draft, num_draft_tokens=3, verifier="token").generate(
        torch.tensor(prompts), params=params, seeds=range(len(prompts))
    )
    measured = int(output.lengths.sum()) / output.stats.num_target_calls
    assert 1.2 < measured < 3.5
    assert quality.block_efficiency == pytest.approx(measured, rel=0.05)


# Against a slow way -------------------------------------------------------------------------------


def test_acceptance_is_that_of_each_text_alone(pair):
    target, draft = pair
    texts = texts_of(target, PROMPTS[:7], SamplingParams(max_new_tokens=9, temperature=0.7))
    params = SamplingParams(temperature=0.7)
    want = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([text.prompt_ids + text.completion_ids])
            place = slice(len(text.prompt_ids) - 1, -1)
            p, q = (
                (m(input_ids=ids).logits[0, place].double() / 0.7).softmax(-1)
                for m in (target, draft)
            )
            want.append(torch.minimum(p, q).sum(-1))
    quality = draft_quality(target, draft, texts, params=params, micro_batch_size=3)
    assert quality.acceptance == pytest.approx(float(torch.cat(want).mean()), abs=1e-6)
    per_text = float(torch.stack([w.mean() for w in want]).mean())
    assert quality.sequence_acceptance == pytest.approx(per_text, abs=1e-6)


@pytest.mark.parametrize("which", ["pair", "t5_pair"])
def test_the_measure_does_not_depend_on_the_micro_batch(which, request):
    target, draft = request.getfixturevalue(which)
    texts = texts_of(target, PROMPTS[:6])
    texts = [
        TokenRow(
            prompt_ids=t.prompt_ids * (1 + i % 3), completion_ids=t.completion_ids[: 3 + 2 * i]
        )
        for i, t in enumerate(texts)
    ]
    one, all_at_once = (
        draft_quality(target, draft, texts, micro_batch_size=size) for size in (1, 16)
    )
    assert one.metrics() == pytest.approx(all_at_once.metrics(), rel=1e-5)
    assert one.num_tokens == sum(len(t.completion_ids) for t in texts)


@pytest.mark.parametrize(("target_size", "draft_size"), [(47, 40), (40, 47)])
def test_tokens_that_one_model_lacks_are_never_accepted(make_llama, target_size, draft_size):
    target = make_llama(sharpness=2.0, vocab_size=target_size)
    draft = make_llama(sharpness=2.0, seed=1, vocab_size=draft_size)
    with torch.no_grad():
        p, q = (
            m(input_ids=torch.tensor([[5, 6]])).logits[0, -1].softmax(-1) for m in (target, draft)
        )
    text = TokenRow(prompt_ids=(5, 6), completion_ids=(7,))
    want = float(torch.minimum(p[:40], q[:40]).sum())
    assert want < 1
    assert draft_quality(target, draft, [text]).acceptance == pytest.approx(want, abs=1e-6)


def test_masks_and_modes_are_left_alone(pair):
    target, draft = pair
    draft.train()
    text = TokenRow(prompt_ids=(5,), completion_ids=(7, 8), mask=(False, True))
    assert draft_quality(target, draft, [text]).num_tokens == 2
    assert draft.training
    draft.eval()


# Limits and bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_perfect_draft_is_always_accepted(pair, temperature):
    target, _ = pair
    params = SamplingParams(max_new_tokens=24, temperature=temperature)
    quality = draft_quality(
        target, target, texts_of(target, params=params), params=params, num_draft_tokens=7
    )
    assert quality.acceptance == pytest.approx(1, abs=1e-6)
    assert quality.greedy_agreement == 1
    assert quality.block_efficiency == pytest.approx(8)
    assert quality.independent_block_efficiency == pytest.approx(8, abs=1e-4)
    assert quality.mbsu == pytest.approx(1)  # as large as the target: nothing gained
    assert quality.kl_bound == pytest.approx(1, abs=1e-3)
    assert quality.padded_acceptance == pytest.approx(1, abs=1e-6)


def test_a_free_draft_makes_mbsu_the_block_efficiency(pair):
    quality = draft_quality(*pair, texts_of(pair[0], PROMPTS[:8]), cost_ratio=0.0)
    assert quality.mbsu == quality.block_efficiency
    assert quality.best.speedup == max(p.block_efficiency for p in quality.curve)


def test_a_dear_draft_is_best_left_alone(pair):
    quality = draft_quality(*pair, texts_of(pair[0], PROMPTS[:8]), cost_ratio=5.0)
    assert quality.best.num_draft_tokens == 0
    assert quality.best.speedup == pytest.approx(1)


def test_the_curve_holds_every_block_size(pair):
    quality = draft_quality(*pair, texts_of(pair[0], PROMPTS[:8]), num_draft_tokens=5)
    assert [p.num_draft_tokens for p in quality.curve] == list(range(17))
    assert quality.curve[5].block_efficiency == quality.block_efficiency
    efficiencies = [p.block_efficiency for p in quality.curve]
    assert efficiencies == sorted(efficiencies)


@pytest.mark.parametrize("share", [0.2, 0.7, 0.97])
def test_the_bounds_hold(make_llama, share):
    target = make_llama(sharpness=2.2)
    draft = blend(make_llama(sharpness=2.2, seed=1), target, share)
    params = SamplingParams(max_new_tokens=6)
    quality = draft_quality(
        target,
        draft,
        texts_of(target, params=params),
        params=params,
        draft_texts=texts_of(draft, params=params),
    )
    low, high = quality.jsd_bounds
    assert 0 <= quality.kl_bound <= quality.acceptance
    assert 0 <= low <= quality.acceptance <= high <= 1
    assert 0 <= quality.theorem_bound <= quality.padded_acceptance


def test_the_theorem_is_its_formula_on_texts_of_full_length(pair):
    target, draft = pair
    draft = blend(copy.deepcopy(draft), target, 0.97)
    draft.generation_config.eos_token_id = None
    own = texts_of(draft, params=SamplingParams(max_new_tokens=3))
    params = SamplingParams(max_new_tokens=3)
    mine = draft_quality(target, draft, own, params=params)
    quality = draft_quality(
        target, draft, texts_of(target, params=params), params=params, draft_texts=own
    )
    want = 1 - 3 * (1 - mine.sequence_acceptance)
    assert want > 0
    assert quality.theorem_bound == pytest.approx(want)


# Choosing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["pair", "t5_pair"])
def test_the_evaluator_ranks_drafts_and_repeats_itself(which, request):
    target, draft = request.getfixturevalue(which)
    evaluate = DraftEvaluator(target, PROMPTS[:12], params=PARAMS, num_draft_tokens=4)
    assert evaluate(draft) == evaluate(draft)
    assert evaluate(target)["block_efficiency"] > evaluate(draft)["block_efficiency"]
    assert all(isinstance(value, float) for value in evaluate(draft).values())


def test_bad_input_is_refused(pair):
    with pytest.raises(ValueError, match="texts is empty"):
        draft_quality(*pair, [])
    with pytest.raises(ValueError, match="none with a token"):
        draft_quality(*pair, [TokenRow(prompt_ids=(5,))])
    text = TokenRow(prompt_ids=(5,), completion_ids=(7,))
    with pytest.raises(ValueError, match="cost_ratio"):
        draft_quality(*pair, [text], cost_ratio=-1.0)
    with pytest.raises(ValueError, match="num_draft_tokens"):
        draft_quality(*pair, [text], num_draft_tokens=-1)
    with pytest.raises(ValueError, match="micro_batch_size"):
        draft_quality(*pair, [text], micro_batch_size=0)
    with pytest.raises(ValueError, match="prompts is empty"):
        DraftEvaluator(pair[0], [])
