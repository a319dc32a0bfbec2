"""Keys tell apart what says different things; the edit distance is the edit distance."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.loops.dedupe import (
    _Packed,
    edit_distance,
    equation_key,
    equations,
    is_false,
    most_different,
    text_key,
)
from selftrain.loops.sample import Sample

WORDS = st.text("ab ", max_size=12)


def sample(text: str, index: int = 0) -> Sample:
    return Sample(
        round=0,
        problem_id="a",
        index=index,
        seed=0,
        text=text,
        token_ids=None,
        finish_reason="stop",
        log_prob=None,
        policy="p",
        sampling="s",
    )


def table_distance(a: str, b: str) -> int:
    """The textbook recurrence (Wagner and Fischer)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@settings(deadline=None)
@given(a=WORDS, b=WORDS)
def test_the_distance_is_that_of_the_textbook_table(a, b):
    assert edit_distance(a, b) == edit_distance(b, a) == table_distance(a, b)


@settings(deadline=None)
@given(a=st.text(max_size=100), b=st.text(max_size=100))
def test_the_distance_is_that_of_the_table_beyond_a_machine_word(a, b):
    assert edit_distance(a, b) == table_distance(a, b)


@settings(deadline=None)
@given(a=WORDS, texts=st.lists(WORDS, max_size=5))
def test_distances_to_texts_side_by_side_do_not_disturb_each_other(a, texts):
    assert _Packed.of(texts).distance(a) == sum(table_distance(a, text) for text in texts)


def test_known_distances():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


@settings(deadline=None)
@given(a=WORDS, b=WORDS)
def test_texts_are_equal_up_to_white_space(a, b):
    assert (text_key(a) == text_key(b)) == (a.split() == b.split())


def test_forms_of_one_character_are_equal():
    assert text_key("\ufb01n\u00a0 e\u0301") == text_key("fin \u00e9")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("48/2 = <<48/2=24>>24 and <<24 + 1 = 25>>", ["48/2=24", "24+1=25"]),
        ("He has 3 + 4 = 7 apples, 2*7=14 legs.", ["3+4=7", "2*7=14"]),
        ("so n = 3 + 4 = 7.", ["3+4=7"]),
        ("5 - 3 = 2 = 1+1", ["5-3=2=1+1"]),
        ("In 2020 3+4=7", ["3+4=7"]),
        ("1. 3+4=7\n- 2 + 2 = 4\n* 1+1=2", ["3+4=7", "2+2=4", "1+1=2"]),
        (
            "3 x 4 = 12, 3 \u00d7 4 = 12, 4\u00f72=2, 4\u22122=2",
            ["3*4=12"] * 2 + ["4/2=2", "4-2=2"],
        ),
        ("$1,000 * 2 = $2,000", ["1000*2=2000"]),
        ("-3+4=1", ["-3+4=1"]),
        ("2x + 3 = 7, x2 = 6, 6 = 2x, x + 3 = 7, a = b, f(3) = 4", []),
        ("no equation", []),
    ],
)
def test_equations_are_those_between_numbers(text, found):
    assert list(equations(text)) == found


@pytest.mark.parametrize(
    ("equation", "wrong"),
    [
        ("1+1=2", False),
        ("1+1=3", True),
        ("(2+3)*4=20", False),
        ("0.1+0.2=0.3", False),
        ("10/3=3.33", False),
        ("2/3=.66", False),
        ("2/3=0.67", False),
        ("2/3=0.68", True),
        ("10/3=3", True),
        ("1+1=2=3", False),
        ("1+1=2=4-1", True),
        ("50=10", False),
        ("(1+1=2", False),
        ("1/0=0", False),
        ("50%*2=1", False),
    ],
)
def test_an_equation_is_false_only_if_that_is_certain(equation, wrong):
    assert is_false(equation) is wrong


def test_solutions_are_equal_by_the_order_of_their_equations():
    one, two, other = "a 1+1=2 b 2+2=4", "c 1 + 1 = 2, 2 + 2 = 4", "2+2=4 1+1=2"
    assert equation_key(sample(one)) == equation_key(sample(two)) != equation_key(sample(other))


def test_a_false_equation_means_no_key_and_none_at_all_means_the_words():
    assert equation_key(sample("1+1=2 and 1+1=3")) is None
    assert equation_key(sample("it is  two")) != equation_key(sample("it is three"))


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from("xyz")), max_size=8))
def test_the_choice_is_that_of_the_published_loop(rows):
    """RFT's algorithm, spelled out with the textbook distance."""
    chosen: dict[str, str] = {}
    for text, key in rows:
        rest = [t for k, t in chosen.items() if k != key]

        def spread(candidate, rest=rest):
            return sum(table_distance(candidate, t) for t in rest)

        if key not in chosen or spread(text) > spread(chosen[key]):
            chosen[key] = text
    samples = [sample(text, i) for i, (text, _) in enumerate(rows)]
    places = most_different(samples, [key for _, key in rows])
    assert {rows[i][1]: rows[i][0] for i in places} == chosen


def test_one_of_every_key_is_chosen():
    pairs = list(itertools.product(["a", "bb", "ccc"], "xyz"))
    places = most_different([sample(t) for t, _ in pairs], [k for _, k in pairs])
    assert sorted(pairs[i][1] for i in places) == ["x", "y", "z"]
