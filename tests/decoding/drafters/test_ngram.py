import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.drafters.protocol import Rows


def never(logits, slot):
    raise AssertionError("an n-gram drafter has no logits")


def propose(texts, num_tokens, *, room=100, **settings):
    longest = max(map(len, texts))
    # What lies beyond a row's length is void: here the most misleading thing there could be.
    tokens = torch.tensor([[*t, *([t[-1]] * (longest + 4 - len(t)))] for t in texts])
    lengths = torch.tensor([len(t) for t in texts])
    rows = Rows(tokens, lengths, lengths - 1 + room, tuple(map(len, texts)))
    draft = NGramDrafter(**settings).propose(rows, num_tokens, never)
    assert draft.logits is None
    return draft.tokens.tolist()


def by_search(text, num_tokens, max_ngram, min_ngram):
    """The definition, token by token."""
    for n in range(min(max_ngram, len(text) - 1), min_ngram - 1, -1):
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == text[-n:]:
                copy = list(text)
                for i in range(num_tokens):
                    copy.append(copy[start + n + i])
                return copy[len(text) :]
    return [-1] * num_tokens


@given(
    texts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=24), min_size=1, max_size=5),
    num_tokens=st.integers(1, 6),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
)
def test_it_agrees_with_a_search_token_by_token(texts, num_tokens, sizes):
    low, high = sizes
    got = propose(texts, num_tokens, max_ngram=high, min_ngram=low)
    assert got == [by_search(t, num_tokens, high, low) for t in texts]


def test_a_longer_match_beats_a_later_one_and_the_latest_wins_among_equals():
    assert propose([[1, 2, 3, 9, 8, 3, 7, 1, 2, 3]], 2) == [[9, 8]]
    assert propose([[2, 3, 9, 5, 2, 3, 8, 5, 2, 3]], 1) == [[8]]


def test_a_loop_is_continued_beyond_the_end_of_the_row():
    assert propose([[4, 1, 2, 1, 2]], 5) == [[1, 2, 1, 2, 1]]
    assert propose([[7, 7]], 3) == [[7, 7, 7]]


def test_rows_without_a_match_propose_nothing():
    assert propose([[1, 2, 3], [5], [1, 2, 1]], 2) == [[-1, -1], [-1, -1], [2, 1]]
    assert propose([[1, 2, 1]], 2, min_ngram=2) == [[-1, -1]]


def test_proposals_beyond_the_last_position_are_void():
    assert propose([[1, 2, 1, 2]], 4, room=2) == [[1, 2, -1, -1]]


@pytest.mark.parametrize(("settings", "name"), [((0, 1), "max_ngram"), ((2, 3), "min_ngram")])
def test_bad_sizes_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        NGramDrafter(*settings)
