"""``generate(custom_generate=...)`` gives what ``generate`` gives, or says that it cannot."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MaxTimeCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TextStreamer,
)

from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.drafters.tree import TreeDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder

ROWS = [[5, 6], [3, 4, 5], [9, 8, 7, 6], [4]]
IDS = torch.tensor([[0] * (4 - len(r)) + r for r in ROWS])
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
ONE = {"input_ids": IDS[2:3]}
GREEDY = {"do_sample": False, "max_new_tokens": 20}


@pytest.fixture
def decoder(pair, char_tokenizer):
    return SpeculativeDecoder(*pair, tokenizer=char_tokenizer, num_draft_tokens=4)


def both(decoder, **arguments):
    """Return what generate gives without and with the decoder."""
    target, loop = decoder.target, decoder.as_custom_generate()
    return target.generate(**arguments), target.generate(**arguments, custom_generate=loop)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "eos_token_id": [1, 10, 13]},
        {"min_length": 12, "eos_token_id": [1, 10, 13]},
        {"forced_eos_token_id": 7},
        {"suppress_tokens": [3, 4, 5, 6]},
        {"begin_suppress_tokens": list(range(3, 30))},
        {"exponential_decay_length_penalty": (3, 1.5)},
        {"eos_token_id": [10, 13], "pad_token_id": 44},
        {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(0.6)])},
        {"repetition_penalty": 1.3, "temperature": 0.5, "top_k": 3},  # ignored when greedy
    ],
    ids=lambda settings: "-".join(settings),
)
@pytest.mark.parametrize("inputs", [ONE, BATCH], ids=["one", "batch"])
def test_greedy_output_is_that_of_plain_generate(decoder, settings, inputs):
    want, got = both(decoder, **inputs, **GREEDY, **settings)
    assert torch.equal(got, want)


def test_processors_of_generate_work_with_a_draft_that_has_no_law(pair):
    decoder = SpeculativeDecoder(pair[0], NGramDrafter())
    want, got = both(decoder, **BATCH, **GREEDY, no_repeat_ngram_size=2)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.7}, {"min_new_tokens": 9, "eos_token_id": [1, 10, 13]}]
)
def test_processors_of_generate_work_in_a_tree(pair, settings):
    decoder = SpeculativeDecoder(pair[0], TreeDrafter(pair[1], [2, 2]))
    want, got = both(decoder, **BATCH, **GREEDY, **settings)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("settings", "params"),
    [
        ({}, {"top_k": 50}),  # what a generation config says by itself
        ({"top_k": 0}, {}),
        ({"top_k": 5, "temperature": 0.7}, {"top_k": 5, "temperature": 0.7}),
        ({"top_k": 0, "top_p": 0.8}, {"top_p": 0.8}),
        ({"top_k": 0, "min_p": 0.1}, {"min_p": 0.1}),
        (
            {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "temperature": 1.4},
            {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "temperature": 1.4},
        ),
    ],
)
@pytest.mark.parametrize("verifier", ["block", "coupled"])
def test_sampling_parameters_come_from_the_generation_config(decoder, settings, params, verifier):
    decoder.verifier = verifier
    loop = decoder.as_custom_generate()
    torch.manual_seed(3)
    got = decoder.target.generate(
        **BATCH, do_sample=True, max_new_tokens=20, custom_generate=loop, **settings
    )
    torch.manual_seed(3)
    want = decoder.generate(**BATCH, params=SamplingParams(max_new_tokens=20, **params))
    assert torch.equal(got, want.sequences)


def test_a_warper_that_is_not_in_the_parameters_is_applied_all_the_same(decoder):
    """Typical sampling between the others: with one token left, it is greedy decoding."""
    loop = decoder.as_custom_generate()
    arguments = {**BATCH, "max_new_tokens": 20, "custom_generate": loop}
    tight = decoder.target.generate(
        **arguments, do_sample=True, top_k=1, typical_p=0.5, renormalize_logits=True
    )
    assert torch.equal(tight, decoder.target.generate(**BATCH, **GREEDY))


def test_rows_that_are_repeated_are_drawn_apart(decoder):
    out = decoder.target.generate(
        **ONE,
        do_sample=True,
        max_new_tokens=20,
        num_return_sequences=3,
        custom_generate=decoder.as_custom_generate(),
    )
    assert len({tuple(row) for row in out.tolist()}) == 3


def test_the_output_comes_in_a_dict_where_that_is_asked_for(decoder):
    want, got = both(decoder, **BATCH, **GREEDY, return_dict_in_generate=True)
    assert torch.equal(got.sequences, want.sequences)


def test_a_stop_string_ends_a_row_and_is_cut_off(decoder, char_tokenizer):
    plain = decoder.target.generate(**ONE, **GREEDY)[0, 4:]
    text = char_tokenizer.decode(plain)
    stop = text[7:10]
    got = decoder.target.generate(
        **ONE,
        **GREEDY,
        stopping_criteria=StoppingCriteriaList([StopStringCriteria(char_tokenizer, [stop])]),
        custom_generate=decoder.as_custom_generate(),
    )
    assert char_tokenizer.decode(got[0, 4:]) == text[: text.index(stop)]


def test_a_streamer_gets_the_prompt_once_and_then_the_text(decoder, char_tokenizer, capsys):
    out = decoder.target.generate(
        **ONE,
        **GREEDY,
        custom_generate=decoder.as_custom_generate(streamer=TextStreamer(char_tokenizer)),
    )
    assert capsys.readouterr().out == char_tokenizer.decode(out[0]) + "\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"output_attentions": True}, "output_attentions"),
        ({"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(9)])}, "MaxTimeCriteria"),
        ({"max_time": 9.0}, "MaxTimeCriteria"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidance.*state"),
        ({"prefix_allowed_tokens_fn": lambda row, text: [row]}, "PrefixConstrained.*rows by"),
        ({"encoder_repetition_penalty": 1.5}, "EncoderRepetition.*rows by their number"),
        ({"stop_strings": ["a"]}, "tokenizer"),
        ({"position_ids": torch.arange(3, 7).expand(4, -1)}, "position_ids must count"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused(decoder, settings, message):
    with pytest.raises(ValueError, match=message):
        decoder.target.generate(
            **BATCH, **GREEDY, **settings, custom_generate=decoder.as_custom_generate()
        )


def test_arguments_of_the_model_are_not_dropped(make_model):
    model = make_model("gpt2")
    loop = SpeculativeDecoder(model, NGramDrafter()).as_custom_generate()
    with pytest.raises(ValueError, match="token_type_ids is not passed on"):
        model.generate(IDS[2:3], **GREEDY, token_type_ids=IDS[2:3], custom_generate=loop)


def test_stop_strings_need_the_decoders_tokenizer(pair, char_tokenizer):
    loop = SpeculativeDecoder(*pair).as_custom_generate()
    criteria = StoppingCriteriaList([StopStringCriteria(char_tokenizer, ["a"])])
    with pytest.raises(ValueError, match=r"stop=\('a',\) needs a tokenizer"):
        pair[0].generate(**ONE, **GREEDY, stopping_criteria=criteria, custom_generate=loop)


def test_a_cache_with_tokens_is_refused(decoder):
    begun = decoder.target(input_ids=IDS[2:3, :2], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds tokens already; pass the whole"):
        decoder.target.generate(
            **ONE, **GREEDY, past_key_values=begun, custom_generate=decoder.as_custom_generate()
        )


def test_another_model_is_refused(decoder, make_llama):
    with pytest.raises(ValueError, match="made for another model"):
        make_llama().generate(**ONE, **GREEDY, custom_generate=decoder.as_custom_generate())


def test_rows_are_streamed_to_a_function(decoder):
    got = {row: [] for row in range(4)}
    loop = decoder.as_custom_generate(streamer=lambda row, tokens: got[row].extend(tokens))
    out = decoder.target.generate(**BATCH, **GREEDY, eos_token_id=[10, 13], custom_generate=loop)
    for row, tokens in got.items():
        assert out[row, 4 : 4 + len(tokens)].tolist() == tokens
        assert (out[row, 4 + len(tokens) :] == 0).all()


def test_encoder_decoder_models_are_sent_to_the_decoder(make_model):
    model = make_model("t5")
    loop = SpeculativeDecoder(model, model).as_custom_generate()
    with pytest.raises(ValueError, match=r"go through SpeculativeDecoder\.generate"):
        model.generate(IDS[2:3], **GREEDY, custom_generate=loop)
