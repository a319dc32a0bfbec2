"""The character tokenizer and the small model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from selftrain.tasks.characters import CHARACTERS, character_tokenizer, small_llama


@given(text=st.text(alphabet=CHARACTERS, max_size=40))
def test_text_of_its_characters_survives_and_takes_one_token_each(text):
    tokenizer = character_tokenizer()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_it_has_at_most_64_symbols_and_the_special_ids():
    tokenizer = character_tokenizer()
    assert len(tokenizer) <= 64
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_unknown_characters_become_the_unknown_token():
    assert character_tokenizer("ab")("a€b")["input_ids"] == [3, 2, 4]


def test_it_saves_and_loads(tmp_path):
    character_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("7+b=")["input_ids"] == character_tokenizer()("7+b=")["input_ids"]
    assert loaded.eos_token_id == 1


@pytest.mark.parametrize("characters", ["", "aba"])
def test_characters_must_be_distinct(characters):
    with pytest.raises(ValueError, match="characters must be distinct"):
        character_tokenizer(characters)


def test_the_model_is_a_function_of_its_seed_and_leaves_torchs_generator_alone():
    tokenizer = character_tokenizer()
    before = torch.get_rng_state()
    first, second, other = (small_llama(tokenizer, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_model_has_the_stated_size_and_knows_the_special_ids():
    model = small_llama(character_tokenizer())
    assert 90_000 < model.num_parameters() < 110_000
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 1)


def test_the_width_is_a_multiple_of_the_head_size():
    with pytest.raises(ValueError, match="width must be a multiple of 32"):
        small_llama(character_tokenizer(), width=100)
