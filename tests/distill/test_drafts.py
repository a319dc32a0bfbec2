import pytest
import torch

from selftrain.decoding import (
    HFSampler,
    SamplingParams,
    SpeculativeDecoder,
    measure_costs,
    predict_block_efficiency,
)
from selftrain.distill import forced_acceptance, measure_draft, target_texts

PROMPTS = [[5, 6, 7], [9], [3, 4], [20, 21]]
PARAMS = SamplingParams(max_new_tokens=40, seed=3)


@pytest.fixture(scope="module")
def pair(make_llama):
    return make_llama(sharpness=2.5), make_llama(sharpness=2.5, num_hidden_layers=1)


def test_the_measure_does_not_depend_on_the_batch(pair):
    target, draft = (m.double() for m in pair)
    measured = [
        measure_draft(target, draft, PROMPTS, params=PARAMS, batch_size=size) for size in (1, 3)
    ]
    assert measured[0].num_accepted == measured[1].num_accepted
    assert measured[0].num_target_calls == measured[1].num_target_calls
    pair[0].float(), pair[1].float()


def test_target_texts_are_what_the_target_samples(pair):
    target, _ = pair
    texts = target_texts(target, PROMPTS, params=PARAMS, seed=1, batch_size=2)
    again = target_texts(target, PROMPTS, params=PARAMS, seed=1, batch_size=4)
    assert texts == again
    assert all(len(t) <= 40 for t in texts)


def test_a_perfect_draft_has_forced_acceptance_one(pair):
    target, _ = pair
    texts = target_texts(target, PROMPTS, params=PARAMS, seed=1)
    for accept in forced_acceptance(target, target, PROMPTS, texts):
        assert torch.equal(accept, torch.ones_like(accept))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_prediction_from_texts_agrees_with_decoding(make_llama, temperature):
    """The renewal recursion against the decoder, within a few standard errors."""
    target, draft = make_llama(sharpness=2.2), make_llama(sharpness=2.2, seed=1)
    with torch.no_grad():
        for a, b in zip(draft.parameters(), target.parameters(), strict=True):
            a.mul_(0.25).add_(b, alpha=0.75)
    target.generation_config.eos_token_id = None
    params = SamplingParams(max_new_tokens=80, temperature=temperature)
    prompts = [[5 + i % 40, 6 + i % 37] for i in range(160)]
    texts = target_texts(target, prompts, params=params, seed=0, batch_size=80)
    forced = forced_acceptance(target, draft, prompts, texts, params=params)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3)
    output = decoder.generate(torch.tensor(prompts), params=params)
    measured = output.stats.block_efficiency
    assert 1.1 < measured < 3.9
    assert predict_block_efficiency(forced, 3) == pytest.approx(measured, rel=0.04)


def test_costs_are_positive_and_predict_plain_decoding_from_its_forward(pair):
    costs = measure_costs(*pair, context=16, num_draft_tokens=3, params=PARAMS, repeats=5)
    assert min(costs.target_one, costs.target_block, costs.draft_step, costs.verify) > 0
    assert costs.plain_tokens_per_second() == 1000 / (costs.target_one + costs.verify)
    block = 3 * costs.draft_step + costs.target_block + costs.verify
    assert costs.tokens_per_second(2.0) == pytest.approx(2000 / block)


def test_no_prompt_is_an_error(pair):
    with pytest.raises(ValueError, match="prompts is empty"):
        measure_draft(*pair, [])


def test_text_prompts_need_a_tokenizer(pair, char_tokenizer):
    with pytest.raises(ValueError, match="tokenizer"):
        measure_draft(*pair, ["ab"], params=PARAMS)
    stats = measure_draft(*pair, ["ab"], params=PARAMS, tokenizer=char_tokenizer)
    assert stats.num_target_calls > 0
    assert HFSampler(pair[0], None).tokenizer is None
