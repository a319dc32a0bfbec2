import dataclasses

import pytest
import torch

from selftrain.bench.synthetic import PAIRS, PairShape, logit_deviation, synthetic_pair
from selftrain.decoding import SamplingParams, SpeculativeDecoder

SHAPE = dataclasses.replace(PAIRS["tiny"], num_layers=3)


def prompts(num=8, length=12):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(SHAPE.vocab_size, (num, length), generator=rng)


@torch.no_grad()
def overlap(**options):
    """Return the mean probability of acceptance at T = 1 along random text."""
    target, draft = synthetic_pair(SHAPE, **options)
    laws = [torch.softmax(model(prompts()).logits, dim=-1) for model in (target, draft)]
    return float(torch.minimum(*laws).sum(-1).mean())


def test_a_pair_is_a_function_of_its_seed():
    first, again, other = (synthetic_pair(SHAPE, seed=seed)[0] for seed in (0, 0, 1))
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_making_a_pair_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    synthetic_pair(SHAPE)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_pair_in_another_dtype_is_the_same_one_rounded():
    full, half = (synthetic_pair(SHAPE, dtype=d)[0] for d in (torch.float32, torch.bfloat16))
    for (name, a), (_, b) in zip(full.named_parameters(), half.named_parameters(), strict=True):
        assert b.dtype == torch.bfloat16
        # The damped layers are rounded twice: when drawn, and when damped.
        torch.testing.assert_close(b.float(), a, rtol=2**-7, atol=0.0, msg=name)


def test_the_draft_holds_no_weights_of_its_own():
    target, draft = synthetic_pair(SHAPE)
    mine = {p.data_ptr() for p in target.parameters()}
    assert {p.data_ptr() for p in draft.parameters()} <= mine
    assert not any(p.is_meta for p in [*draft.parameters(), *draft.buffers()])


def test_a_corrupted_draft_leaves_the_target_as_it_was():
    clean, _ = synthetic_pair(SHAPE)
    target, draft = synthetic_pair(SHAPE, corruption=0.5)
    assert torch.equal(clean.lm_head.weight, target.lm_head.weight)
    assert not torch.equal(draft.lm_head.weight, target.lm_head.weight)


def test_the_draft_is_the_target_without_its_later_layers():
    target, draft = synthetic_pair(SHAPE)
    with torch.no_grad():
        got = draft(prompts()).logits
        del target.model.layers[SHAPE.draft_layers :]
        torch.testing.assert_close(got, target(prompts()).logits)


def test_without_damping_target_and_draft_are_one_model():
    assert overlap(damping=0.0) == pytest.approx(1.0, abs=1e-5)


def test_the_agreement_falls_with_the_damping():
    values = [overlap(damping=damping) for damping in (0.005, 0.02, 0.1, 0.3, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.98
    assert values[-1] < 0.5


def test_the_agreement_falls_with_the_corruption():
    values = [overlap(corruption=corruption) for corruption in (0.0, 0.2, 0.5, 0.9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.3


def test_corruption_leaves_the_deviation_of_the_logits():
    with torch.no_grad():
        logits = [synthetic_pair(SHAPE, corruption=c)[1](prompts()).logits for c in (0.0, 0.7)]
    assert float(logits[0].std()) == pytest.approx(float(logits[1].std()), rel=0.05)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_laws_are_as_uncertain_as_those_of_text(name):
    target, _ = synthetic_pair(name)
    with torch.no_grad():
        log_probs = torch.log_softmax(target(prompts()).logits, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    assert 2 < float(entropy) < 4.5


@pytest.mark.parametrize("vocab_size", [256, 8192, 128256])
def test_normal_logits_of_the_deviation_have_the_promised_entropy(vocab_size):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(50, vocab_size, generator=rng) * logit_deviation(vocab_size)
    log_probs = torch.log_softmax(logits, dim=-1)
    assert 2.8 < float(-(log_probs.exp() * log_probs).sum(-1).mean()) < 4.6


def test_greedy_text_does_not_repeat_itself():
    target, draft = synthetic_pair("small")
    params = SamplingParams(max_new_tokens=60, temperature=0)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=4)
    for row in decoder.generate(prompts(num=4), params=params).new_tokens():
        assert len(set(row)) > 40


def test_every_named_pair_can_be_built_without_its_weights():
    for shape in PAIRS.values():
        assert shape.draft_layers < shape.num_layers
        assert shape.hidden_size % shape.num_heads == 0
        assert shape.num_heads % shape.num_kv_heads == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "huge"}, "pair must be one of 'tiny'"),
        ({"damping": -1.0}, "damping must satisfy"),
        ({"corruption": 1.5}, "corruption must satisfy"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic_pair(**{"shape": SHAPE, **options})


def test_a_draft_deeper_than_its_target_is_refused():
    with pytest.raises(ValueError, match="draft_layers"):
        dataclasses.replace(SHAPE, draft_layers=4)
    assert isinstance(SHAPE, PairShape)
