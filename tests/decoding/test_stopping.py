"""Where rows end: the same place, whatever the blocks in which their tokens arrive."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selftrain.decoding.stopping import Stopping, StopScan, resolve_eos

CAT = "c\U0001f63aat"  # its second character takes four bytes


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def scanned(stopping, tokens, lengths, *, budget):
    """Return what a scan says when it is asked after blocks of these lengths."""
    scan, seen = StopScan(stopping), []
    for length in [*lengths, len(tokens)]:
        seen = tokens[: len(seen) + length]
        kept = scan.advance(seen, budget=budget)
        if kept is not None or len(seen) == len(tokens):
            return kept
    raise AssertionError("the last block ends the loop")


def asked(stopping, tokens, lengths, *, budget):
    """The same by the whole text, decoded anew each time."""
    seen = []
    for length in [*lengths, len(tokens)]:
        seen = tokens[: len(seen) + length]
        ending = stopping.ending(seen, budget=budget)
        if ending.reason is not None:
            return ending.num_tokens
        if len(seen) == len(tokens):
            return None
    raise AssertionError("the last block ends the loop")


block_lengths = st.lists(st.integers(1, 9), max_size=30)
stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5]), min_size=1), block_lengths, stops)
@example([3, *[2] * 20, 4], [15], ("ab",))  # tokens without text between the two
@example([3, 4, 5, 6], [4], ("abcd", "c"))
def test_a_scan_finds_what_a_look_at_everything_after_each_token_finds(
    char_tokenizer, tokens, lengths, stop
):
    """Ids: 1 ends, 2 is special and leaves no text, 3 to 5 are a, b, c."""
    stopping = Stopping(frozenset([1]), stop, char_tokenizer)
    for budget in (len(tokens) + 1, max(1, len(tokens) // 2)):
        got = scanned(stopping, tokens, lengths, budget=budget)
        assert got == asked(stopping, tokens, lengths, budget=budget)
        assert got == asked(stopping, tokens, [1] * len(tokens), budget=budget)


@given(st.data(), block_lengths)
def test_a_scan_finds_stop_strings_inside_and_across_tokens(bpe_tokenizer, data, lengths):
    pieces = [*ids(bpe_tokenizer, CAT), *ids(bpe_tokenizer, " the cat sat on the mat"), 2]
    tokens = data.draw(st.lists(st.sampled_from(pieces), min_size=1))
    stop = (CAT, "\U0001f63a", "he c", "t", "sat the")[data.draw(st.integers(0, 4)) :]
    stopping = Stopping(frozenset([1]), stop, bpe_tokenizer)
    got = scanned(stopping, tokens, lengths, budget=99)
    assert got == asked(stopping, tokens, [1] * len(tokens), budget=99)


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("the cat sat", ("cat",), "the "),
        ("the cat sat", ("at", "cat"), "the "),  # both end with the same character
        ("the cat sat", ("cat sat", "at"), "the c"),  # "at" is complete first
        ("the cat sat", ("t", "he"), ""),
        (f"the {CAT} sat", ("\U0001f63a",), "the c"),
        ("the cat sat", ("mat",), "the cat sat"),
    ],
)
def test_text_is_cut_before_the_stop_string_that_is_complete_first(bpe_tokenizer, text, stop, kept):
    tokens = ids(bpe_tokenizer, text)
    ending = Stopping(frozenset(), stop, bpe_tokenizer).ending(tokens, budget=99)
    assert ending.text == kept
    covered = bpe_tokenizer.decode(tokens[: ending.num_tokens])
    assert covered.startswith(kept)
    shorter = bpe_tokenizer.decode(tokens[: max(0, ending.num_tokens - 1)])
    assert not kept or not shorter.startswith(kept)


def test_an_end_of_sequence_hides_what_follows_it(char_tokenizer):
    a, b, c = ids(char_tokenizer, "abc")
    stopping = Stopping(frozenset([1]), ("bc",), char_tokenizer)
    assert stopping.ending([a, b, 1, b, c], budget=9) == (3, "ab", "stop")
    assert stopping.ending([a, b, c, 1], budget=9) == (1, "a", "stop")


def test_what_lies_beyond_the_budget_does_not_count(char_tokenizer):
    tokens = ids(char_tokenizer, "abc")
    stopping = Stopping(frozenset(), ("bc",), char_tokenizer)
    assert stopping.ending(tokens, budget=2) == (2, "ab", "length")


def test_end_of_sequence_ids_come_from_the_call_then_the_model_then_the_tokenizer(
    make_llama, char_tokenizer
):
    model = make_llama()
    assert resolve_eos(model, char_tokenizer, [4, 5]) == {4, 5}
    assert resolve_eos(model, char_tokenizer, 4) == {4}
    assert resolve_eos(model, char_tokenizer, ()) == frozenset()
    model.generation_config.eos_token_id = [7, 8]
    assert resolve_eos(model, char_tokenizer, None) == {7, 8}
    model.generation_config.eos_token_id = None
    assert resolve_eos(model, char_tokenizer, None) == {char_tokenizer.eos_token_id}
    assert resolve_eos(model, None, None) == frozenset()
