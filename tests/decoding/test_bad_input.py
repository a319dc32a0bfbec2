"""Bad input is refused before any work, by an error that names it, what came and what is wanted."""

import pytest
import torch

from selftrain.decoding.drafters import ModelDrafter
from selftrain.decoding.drafters.layers import LayerDrafter
from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.ops.lenience import (
    Lenience,
    LeviathanLenience,
    MixtureLenience,
    TypicalAcceptance,
)

IDS = torch.tensor([[0, 0, 5, 6], [9, 8, 7, 6]])
MASK = (IDS > 0).long()
SHORT = SamplingParams(max_new_tokens=3, temperature=0)


def generate(pair, **changes):
    return SpeculativeDecoder(*pair).generate(
        **{"input_ids": IDS, "attention_mask": MASK, "params": SHORT, **changes}
    )


def test_different_vocabularies_need_a_mapping(make_llama, char_tokenizer):
    target, draft = make_llama(), make_llama(vocab_size=30)
    size = len(char_tokenizer)
    with pytest.raises(ValueError, match=rf"target has {size} logits, the draft 30.*tokenizer"):
        SpeculativeDecoder(target, draft)
    with pytest.raises(ValueError, match=rf"the one passed has {size} tokens"):
        SpeculativeDecoder(target, draft, tokenizer=char_tokenizer)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (-1, ValueError, "0 <= num_draft_tokens, got -1"),
        (2.0, TypeError, "num_draft_tokens must be an integer, got 2.0"),
        (True, TypeError, "num_draft_tokens must be an integer, got True"),
        ("fast", ValueError, "num_draft_tokens must be one of 'auto'; got 'fast'"),
    ],
)
def test_the_number_of_draft_tokens_is_a_count_or_auto(pair, wrong, error, message):
    with pytest.raises(error, match=message):
        SpeculativeDecoder(*pair, num_draft_tokens=wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lenience(epsilon=0.0), r"0.0 < epsilon <= 1.0, got 0.0"),
        (lambda: Lenience(epsilon=1.1), r"0.0 < epsilon <= 1.0, got 1.1"),
        (lambda: LeviathanLenience(lenience=0.0), r"0.0 < lenience <= 1.0, got 0.0"),
        (lambda: MixtureLenience(weight=-0.1), r"0.0 <= weight <= 1.0, got -0.1"),
        (lambda: MixtureLenience(weight=1.5), r"0.0 <= weight <= 1.0, got 1.5"),
        (lambda: TypicalAcceptance(epsilon=1.0), r"0.0 < epsilon < 1.0, got 1.0"),
        (lambda: TypicalAcceptance(delta=0.0), r"0.0 < delta < 1.0, got 0.0"),
    ],
)
def test_lenience_lies_in_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lenience_is_a_rule_that_goes_with_the_verifier(pair):
    with pytest.raises(TypeError, match=r"lenience must be a Lenience, .* got 0.5"):
        SpeculativeDecoder(*pair, lenience=0.5)
    with pytest.raises(ValueError, match=r"verifier='coupled'.*takes no lenience"):
        SpeculativeDecoder(*pair, verifier="coupled", lenience=MixtureLenience(weight=0.1))
    with pytest.raises(ValueError, match="Lenience is not; use MixtureLenience, or verifier='tok"):
        SpeculativeDecoder(*pair, verifier="block", lenience=Lenience(epsilon=0.5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, r"0.0 <= temperature < inf, got -0.1"),
        ({"temperature": float("nan")}, r"temperature.*got nan"),
        ({"temperature": float("inf")}, r"temperature < inf, got inf"),
        ({"top_p": 0.0}, r"0.0 < top_p <= 1.0, got 0.0"),
        ({"top_p": 1.1}, r"0.0 < top_p <= 1.0, got 1.1"),
        ({"min_p": 1.0}, r"0.0 <= min_p < 1.0, got 1.0"),
        ({"top_k": 0}, r"1 <= top_k, got 0"),
        ({"max_new_tokens": 0}, r"1 <= max_new_tokens, got 0"),
        ({"stop": "end"}, r"stop must be a tuple of non-empty strings, got 'end'"),
        ({"stop": ("",)}, r"stop must be a tuple of non-empty strings"),
        ({"seed": -1}, r"0 <= seed.*got -1"),
    ],
)
def test_sampling_parameters_lie_in_their_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)


def test_stop_strings_need_a_tokenizer(pair):
    params = SamplingParams(max_new_tokens=3, stop=("end",))
    with pytest.raises(ValueError, match=r"stop=\('end',\) needs a tokenizer"):
        generate(pair, params=params)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[1, 1, 0, 1], [1, 1, 1, 1]], ValueError, r"attention_mask\[0\] has gaps; one unbroken"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], ValueError, r"attention_mask\[1\] is all zeros: .*empty"),
        ([[1, 1, 1], [1, 1, 1]], ValueError, r"shape \(2, 3\), input_ids \(2, 4\)"),
    ],
)
def test_a_mask_marks_one_stretch_a_row(pair, mask, error, message):
    with pytest.raises(error, match=message):
        generate(pair, attention_mask=torch.tensor(mask))


def test_a_mask_is_a_tensor(pair):
    with pytest.raises(TypeError, match="attention_mask must be a tensor, got list"):
        generate(pair, attention_mask=MASK.tolist())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.empty(1, 0, dtype=torch.long), ValueError, r"not empty, got \(1, 0\)"),
        (torch.tensor([5, 6]), ValueError, r"input_ids must be \[batch, time\].*got \(2,\)"),
        (torch.tensor([[5.0, 6.0]]), TypeError, "input_ids must be integers, got torch.float32"),
        ([[5, 6]], TypeError, "input_ids must be a tensor, got list"),
        (torch.tensor([[5, 99]]), ValueError, "input_ids holds 99; the target has tokens 0 to 46"),
        (torch.tensor([[-1, 9]]), ValueError, "input_ids holds -1"),
    ],
)
def test_prompts_are_ids_of_the_target(pair, wrong, error, message):
    with pytest.raises(error, match=message):
        generate(pair, input_ids=wrong, attention_mask=None)


@pytest.mark.parametrize("flip", [False, True])
def test_padding_without_a_mask_is_not_taken_for_text(pair, flip):
    ids = IDS.flip(1) if flip else IDS
    side = "ends" if flip else "begins"
    with pytest.raises(
        ValueError, match=rf"attention_mask is missing, and .*\[0\] {side} with .*0"
    ):
        generate(pair, input_ids=ids, attention_mask=None)


def test_an_id_that_pads_and_ends_or_begins_may_stand_in_a_prompt(make_llama):
    """Without a mask, what GPT-2 does: one id for everything."""
    model = make_llama(pad_token_id=1)
    ids = torch.tensor([[1, 5], [6, 7]])
    assert generate((model, model), input_ids=ids, attention_mask=None).lengths.tolist() == [3, 3]


def test_ragged_prompts_with_a_mask_need_no_pad_id(make_llama):
    model = make_llama(pad_token_id=None)
    output = generate((model, model), eos_token_ids=())
    assert output.lengths.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        ([1], ValueError, "seeds must hold one seed a row, 2 in all; got 1"),
        ([1, -1], ValueError, r"0 <= seeds\[1\] <= 9223372036854775807, got -1"),
        ([1, 2**63], ValueError, r"seeds\[1\].*got 9223372036854775808"),
        ([0.5, 1], TypeError, r"seeds\[0\] must be an integer, got 0.5"),
    ],
)
def test_there_is_one_seed_a_row(pair, seeds, error, message):
    with pytest.raises(error, match=message):
        generate(pair, seeds=seeds)


def test_seeds_and_a_seed_exclude_one_another(pair):
    params = SamplingParams(max_new_tokens=3, seed=1)
    with pytest.raises(ValueError, match=r"seeds and params.seed are both given"):
        generate(pair, params=params, seeds=[1, 2])


def test_end_of_sequence_ids_are_ids(pair):
    with pytest.raises(TypeError, match="eos_token_ids must be an integer, got '<eos>'"):
        generate(pair, eos_token_ids=["<eos>"])


def test_models_on_different_devices_are_refused(make_llama):
    drafter = ModelDrafter(make_llama())
    drafter.model.to("meta")
    with pytest.raises(ValueError, match=r"target is on cpu, the draft on meta; .*draft.to\('cpu'"):
        SpeculativeDecoder(make_llama(), drafter)


@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
def test_models_of_different_dtypes_work_together(make_llama, verifier):
    target, draft = make_llama(sharpness=2.5).double(), make_llama(seed=1).bfloat16()
    decoder = SpeculativeDecoder(target, draft, verifier=verifier)
    assert decoder.generate(IDS[1:], params=SHORT).lengths.tolist() == [3]
    sampled = SamplingParams(max_new_tokens=3, seed=1)
    output = decoder.generate(IDS[1:], params=sampled, eos_token_ids=())
    assert output.lengths.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("openaigpt", "it has no key-value cache"),
        ("mamba", r"it has recurrent layers \(.*whose state keeps no past to roll back to"),
        ("llama4", "its attention is chunked"),
        ("gptneo", "local attention"),
    ],
)
def test_a_model_that_cannot_roll_back_is_refused_with_the_reason(
    make_llama, make_model, name, reason
):
    other = make_model(name)
    with pytest.raises(TypeError, match=rf"the target cannot be used .*{reason}"):
        SpeculativeDecoder(other, NGramDrafter())
    with pytest.raises(TypeError, match=rf"the draft cannot be used .*{reason}"):
        SpeculativeDecoder(make_llama(vocab_size=64), other)


def test_a_window_is_refused_where_slots_would_do(make_model):
    model = make_model("mistral")
    with pytest.raises(TypeError, match=r"sliding-window.*cache='slots' can drive it"):
        SpeculativeDecoder(model, NGramDrafter(), cache="dynamic")


def test_a_draft_is_a_model_or_a_drafter(make_llama):
    with pytest.raises(TypeError, match="draft must be a model or a Drafter, got str"):
        SpeculativeDecoder(make_llama(), "tiny-draft")


@pytest.mark.parametrize("name", ["verifier", "cache"])
def test_choices_are_listed(pair, name):
    with pytest.raises(ValueError, match=rf"{name} must be .*got 'fast'"):
        SpeculativeDecoder(*pair, **{name: "fast"})


def test_first_layers_need_the_slots_of_the_target(make_llama):
    decoder = SpeculativeDecoder(make_llama(), LayerDrafter(1), cache="dynamic")
    with pytest.raises(ValueError, match="LayerDrafter shares the target's slots; use cache='slo"):
        decoder.generate(IDS[1:], params=SHORT)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_text_that_outgrows_the_positions_is_refused(make_llama, role):
    pair = [make_llama(max_position_embeddings=n) for n in (128, 6)]
    if role == "target":
        pair.reverse()
    with pytest.raises(
        ValueError, match=rf"4 tokens and max_new_tokens=3 need 7 .*the {role} has 6"
    ):
        generate(pair)


def test_a_source_that_outgrows_the_encoders_positions_is_refused(make_model):
    model = make_model("bart")
    with pytest.raises(ValueError, match=r"70 tokens .*the target has 64"):
        generate((model, model), input_ids=torch.full((1, 70), 5), attention_mask=None)


def test_target_and_draft_read_the_same_input(make_llama, make_model):
    with pytest.raises(TypeError, match="one of target and draft has an encoder"):
        SpeculativeDecoder(make_model("t5"), make_llama(vocab_size=64))


@pytest.mark.parametrize("wrong", [3, lambda ids, scores: scores])
def test_processors_come_in_a_list(pair, wrong):
    with pytest.raises(TypeError, match="logits_processor must be a list of processors, got"):
        generate(pair, logits_processor=wrong)


def test_a_processor_is_callable(pair):
    with pytest.raises(TypeError, match="logits_processor holds a str, which is not callable"):
        generate(pair, logits_processor=["penalty"])
