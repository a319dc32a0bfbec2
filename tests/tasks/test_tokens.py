"""Tokens: a tokenizer without loss, windows inside documents, blocks over them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from selftrain.tasks import (
    Document,
    blocks,
    encode_documents,
    load_corpus,
    train_tokenizer,
    windows,
)

ENCODED = st.lists(st.lists(st.integers(0, 99), max_size=40), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def texts():
    return [d.text for d in load_corpus("python-docs", max_characters=60_000)]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=512)


# The tokenizer ------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(text=st.text())
def test_every_text_survives_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " a  b \n\n\tc ", "x , y .", "é\u0301 漢字 🎉\x00", "<|pad|>"]
)
def test_awkward_texts_survive_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_vocabulary_has_the_size_asked_for_and_compresses(tokenizer, texts):
    assert len(tokenizer) == tokenizer.vocab_size == 512
    assert len(tokenizer.encode(texts[0])) < 0.6 * len(texts[0].encode())


def test_digits_are_tokens_of_their_own(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("2024")) == ["2", "0", "2", "4"]


def test_padding_is_not_the_end_of_a_sequence(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_same_texts_give_the_same_vocabulary(tokenizer, texts):
    again = train_tokenizer(iter(texts), vocab_size=512)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_a_saved_tokenizer_loads_unchanged(tokenizer, texts, tmp_path, loader):
    tokenizer.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert loaded.encode(texts[0]) == tokenizer.encode(texts[0])
    assert loaded.decode(loaded.encode("a , b")) == "a , b"
    assert loaded.special_tokens_map == tokenizer.special_tokens_map


@pytest.mark.parametrize(("size", "error"), [(257, ValueError), (1e3, TypeError)])
def test_a_vocabulary_has_room_for_every_byte(size, error):
    with pytest.raises(error, match="vocab_size"):
        train_tokenizer(["text"], vocab_size=size)


# Documents ----------------------------------------------------------------------------------------


def test_a_document_ends_once_even_if_it_spells_the_end(tokenizer):
    document = Document("d", "before<|endoftext|>after")
    ((*ids, last),) = encode_documents(tokenizer, [document])
    assert last == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == document.text


def test_encoding_documents_leaves_the_tokenizer_as_it_was(tokenizer):
    encode_documents(tokenizer, [Document("d", "text")])
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id]


def test_documents_need_a_token_that_ends_them(tokenizer):
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no eos_token"):
        encode_documents(endless, [Document("d", "text")])


# Windows and blocks -------------------------------------------------------------------------------


@given(ENCODED, st.integers(1, 5), st.integers(1, 5))
def test_windows_tile_each_document_and_never_cross_into_another(encoded, prompt, completion):
    # Make each token name its document and position, so that a row tells where it is from.
    tagged = [[1000 * d + i for i in range(len(ids))] for d, ids in enumerate(encoded)]
    if max(map(len, tagged)) <= prompt:
        return
    rows = windows(tagged, prompt_tokens=prompt, completion_tokens=completion)
    seen = [row["prompt_ids"] + row["completion_ids"] for row in rows]
    assert all(ids == list(range(ids[0], ids[0] + len(ids))) for ids in seen)
    assert all(ids[0] // 1000 == ids[-1] // 1000 for ids in seen)
    assert sum(map(len, seen)) == len(set().union(*seen))
    left_out = sum(map(len, tagged)) - sum(map(len, seen))
    assert left_out <= prompt * len(tagged)


@given(ENCODED, st.integers(1, 5), st.integers(1, 5))
def test_every_window_has_a_full_prompt_and_something_to_complete(encoded, prompt, completion):
    if max(map(len, encoded)) <= prompt:
        return
    for row in windows(encoded, prompt_tokens=prompt, completion_tokens=completion):
        assert len(row["prompt_ids"]) == prompt
        assert 1 <= len(row["completion_ids"]) <= completion


def test_windows_without_a_long_enough_document_are_an_error():
    with pytest.raises(ValueError, match=r"prompt_tokens=4 tokens \(the longest of 2 has 3\)"):
        windows([[1, 2, 3], [1]], prompt_tokens=4, completion_tokens=2)


@given(ENCODED, st.integers(1, 9))
def test_blocks_are_the_documents_end_to_end(encoded, length):
    flat = [token for ids in encoded for token in ids]
    if len(flat) < length:
        return
    rows = blocks(encoded, length=length)
    assert all(len(row["input_ids"]) == length for row in rows)
    assert [t for row in rows for t in row["input_ids"]] == flat[: len(flat) // length * length]


def test_less_than_one_block_is_an_error():
    with pytest.raises(ValueError, match="4 tokens together, fewer than one block of length=8"):
        blocks([[1, 2], [3, 4]], length=8)
