import pytest
import torch

from selftrain.decoding import EncoderDecoderSampler, SamplingParams

PROMPTS = [[5, 6, 7, 1], [9, 8, 7, 6, 5, 4, 1], [20, 1]]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("t5", sharpness=1.2).double()


def test_greedy_completions_are_those_of_transformers(model):
    sampler = EncoderDecoderSampler(model, None, batch_size=2)
    params = SamplingParams(max_new_tokens=12, temperature=0)
    for prompt, (completion,) in zip(PROMPTS, sampler.sample(PROMPTS, params=params), strict=True):
        want = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, 1:]
        assert list(completion.token_ids) == want.tolist()[: len(completion.token_ids)]
        assert completion.finish_reason == ("stop" if 1 in completion.token_ids else "length")


def test_a_completion_is_a_function_of_its_prompt_and_seed(model):
    params = SamplingParams(max_new_tokens=12)
    seeds = [[1, 2], [3, 4], [5, 6]]
    together = EncoderDecoderSampler(model, None, batch_size=5).sample(
        PROMPTS, num_samples=2, params=params, seeds=seeds
    )
    alone = EncoderDecoderSampler(model, None).sample([PROMPTS[1]], params=params, seeds=[[4]])
    assert together[1][1].token_ids == alone[0][0].token_ids
    assert [len(row) for row in together] == [2, 2, 2]


def test_prompts_are_needed(model):
    with pytest.raises(ValueError, match="prompts is empty"):
        EncoderDecoderSampler(model, None).sample([])
