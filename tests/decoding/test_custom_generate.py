import pytest
import torch
from transformers import SynthIDTextWatermarkingConfig

from selftrain import SpeculativeDecoder


@pytest.fixture
def decoder(make_llama):
    return SpeculativeDecoder(make_llama().double(), make_llama(seed=1).double())


@pytest.fixture
def prompts():
    input_ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 8, 9, 8]])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}])
def test_greedy_generate_gives_the_tokens_of_plain_generate(decoder, prompts, options):
    plain = decoder.target.generate(**prompts, max_new_tokens=20, **options)
    ours = decoder.target.generate(
        **prompts, max_new_tokens=20, custom_generate=decoder.as_custom_generate(), **options
    )
    assert ours.tolist() == plain.tolist()


def test_a_processor_that_keeps_state_is_refused(decoder, prompts):
    watermark = SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=2)
    with pytest.raises(ValueError, match="keeps state"):
        decoder.target.generate(
            **prompts,
            max_new_tokens=4,
            do_sample=True,
            watermarking_config=watermark,
            custom_generate=decoder.as_custom_generate(),
        )
