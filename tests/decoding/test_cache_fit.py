import inspect

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.t5.modeling_t5 import T5Attention

from selftrain.decoding.cache import (
    HoleyCache,
    PaddedLanes,
    Seq2SeqCache,
    SharedLanes,
    SlotCache,
    SlotLanes,
    decoding_cache,
    dynamic_obstacle,
    max_positions,
    sampling_lanes,
    seq2seq_obstacle,
    slot_obstacle,
)

SLOTS = ["gpt2", "opt", "qwen3", "gptneox", "falcon", "mpt"]
SHARED = ["gpt2", "opt", "qwen3", "gptneox"]  # plain attention, which can be exchanged
WINDOWS = ["mistral", "mixtral", "phi3", "gemma3", "gemma3n"]


@pytest.mark.parametrize("name", [*SLOTS, *WINDOWS])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_full_and_windowed_attention_use_slots(make_model, name, attention):
    model = make_model(name)
    model.set_attn_implementation(attention)
    assert slot_obstacle(model) is None
    assert decoding_cache(model) is SlotCache
    assert sampling_lanes(model) is (SharedLanes if name in SHARED else SlotLanes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5", "bart"])
def test_half_precision_is_not_taken_for_a_model_that_ignores_positions(make_model, name, dtype):
    decoding_cache(make_model(name).to(dtype))


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "t5gemma"])
def test_encoder_decoder_models_use_slots_of_their_own(make_model, name):
    model = make_model(name)
    assert decoding_cache(model) is Seq2SeqCache
    with pytest.raises(TypeError, match=r"the draft .* cache='slots' can drive it"):
        decoding_cache(model, "dynamic", role="draft")


def test_a_model_that_takes_no_slots_can_be_driven_through_its_own_cache(make_model):
    model = make_model("bloom")
    assert decoding_cache(model, "dynamic") is HoleyCache
    assert sampling_lanes(model) is PaddedLanes
    with pytest.raises(TypeError, match=r"the target .* cache='dynamic' can drive it"):
        decoding_cache(model, role="target")


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_do_not_go_with_holes(make_model, name):
    assert "window would count" in dynamic_obstacle(make_model(name))


def test_alibi_by_slot_does_not_go_with_holes(make_model):
    assert "ignores" in dynamic_obstacle(make_model("mpt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mamba", "recurrent layers .* attention alone"),
        ("jamba", "recurrent layers .* attention alone"),
        ("llama4", "chunked"),
        ("openaigpt", "no key-value cache"),
        ("umt5", "bias of its own"),
    ],
)
@pytest.mark.parametrize("wanted", ["slots", "dynamic"])
def test_what_cannot_roll_back_is_refused_with_the_reason(make_model, name, message, wanted):
    message = "encoder-decoder" if (name, wanted) == ("umt5", "dynamic") else message
    with pytest.raises(TypeError, match=f"the model cannot be used .*{message}"):
        decoding_cache(make_model(name), wanted)


def test_local_attention_without_a_mask_is_refused(make_model):
    assert "longest row" in slot_obstacle(make_model("gptneo"))


def test_windows_of_different_sizes_are_refused(make_model, monkeypatch):
    from selftrain.decoding.cache import fit

    monkeypatch.setattr(fit, "attention_windows", lambda config: [4, None, 8])
    assert "[4, 8]" in slot_obstacle(make_model("gemma3"))


def test_flash_attention_is_refused_with_the_way_out(make_model):
    model = make_model("qwen3")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(TypeError, match=r"'flash_attention_2'.*attn_implementation='sdpa'"):
        decoding_cache(model)


@pytest.mark.parametrize("kind", ["quantized", "offloaded"])
def test_a_wish_for_another_kind_of_cache_is_not_ignored(make_model, kind):
    model = make_model("qwen3")
    model.generation_config.cache_implementation = kind
    assert "cache_implementation = None" in slot_obstacle(model)
    model.generation_config.cache_implementation = "static"  # which slots are
    assert slot_obstacle(model) is None


def test_other_names_of_caches_are_an_error(make_model):
    with pytest.raises(ValueError, match="'paged'"):
        decoding_cache(make_model("gpt2"), "paged")


def test_a_plain_module_is_refused():
    assert "configuration" in slot_obstacle(torch.nn.Linear(2, 2))
    assert "not an encoder-decoder" in seq2seq_obstacle(torch.nn.Linear(2, 2))


def test_a_recurrent_model_is_not_sampled_from_either(make_model):
    with pytest.raises(TypeError, match="recurrent"):
        sampling_lanes(make_model("mamba"))


@pytest.mark.parametrize("argument", ["position_ids", "attention_mask"])
@pytest.mark.parametrize("obstacle", [slot_obstacle, dynamic_obstacle])
def test_a_model_that_ignores_an_argument_is_found_out(make_llama, argument, obstacle):
    model = make_llama(sharpness=2.0)
    plain = model.forward

    def forward(*args, past_key_values=None, **kwargs):
        kwargs.pop(argument, None)
        return plain(*args, past_key_values=past_key_values, **kwargs)

    model.forward = forward
    assert "ignores" in obstacle(model)


def test_position_tables_limit_the_length(make_model):
    assert max_positions(make_model("gpt2", n_positions=100)) == 100
    assert max_positions(make_model("bart", max_position_embeddings=50)) == 50
    assert max_positions(make_model("t5")) is None


# What the caches rely on in transformers.


def test_cache_layers_need_exactly_these_methods():
    assert CacheLayerMixin.__abstractmethods__ == {
        "lazy_initialization",
        "update",
        "get_seq_length",
        "get_mask_sizes",
        "get_max_length",
    }


@pytest.mark.parametrize("create", [create_causal_mask, create_sliding_window_causal_mask])
def test_a_prepared_mask_reaches_attention_as_it_is(make_model, create):
    config = make_model("mistral").config
    mask, states = torch.ones(2, 1, 3, 5, dtype=torch.bool), torch.zeros(2, 3, 32)
    cache = DynamicCache(config=config)
    got = create(config=config, inputs_embeds=states, attention_mask=mask, past_key_values=cache)
    assert got is mask


def test_a_dynamic_layer_appends_and_can_be_written_to():
    layer = DynamicLayer()
    first, second = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 1, 4)
    layer.update(first, first)
    layer.keys = layer.values = first[:, :, :2]
    keys, _ = layer.update(second, second)
    assert torch.equal(keys, torch.cat([first[:, :, :2], second], dim=2))
    layer.reorder_cache(torch.tensor([1]))
    assert torch.equal(layer.keys, keys[1:])


def test_t5_computes_its_bias_from_lengths_alone():
    parameters = list(inspect.signature(T5Attention.compute_bias).parameters)
    assert parameters == ["self", "query_length", "key_length", "device", "past_seen_tokens"]
