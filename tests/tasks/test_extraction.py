"""Where a text says its final answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks import (
    extract_after,
    extract_answer_is,
    extract_boxed,
    extract_final_answer,
    first_of,
    leading_number,
)

# LaTeX with balanced braces, escaped ones among them, and no box of its own.
balanced = st.recursive(
    st.sampled_from(["x", "1", r"\{", r"\}", r"\frac", " ", r"\\", "$"]),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(
        lambda parts: f"{{{''.join(parts)}}}"
    ),
    max_leaves=12,
)


@given(st.lists(balanced, min_size=1, max_size=4), st.text(alphabet="ab $\n", max_size=8))
def test_the_last_box_is_taken_with_its_braces_matched(contents, between):
    text = between.join(rf"\boxed{{{content}}}" for content in contents) + between
    assert extract_boxed(text) == (contents[-1].strip() or None)


@given(balanced, balanced)
def test_a_last_box_that_is_cut_off_is_no_answer(first, last):
    text = rf"\boxed{{{first}}} and \boxed{{{last}"
    assert extract_boxed(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed 5$ so", "5"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxedtext{5}", None),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_what_is_and_what_is_not_a_box(text, answer):
    assert extract_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 5", "5"),
        ("#### 5\n#### 6\nmore", "6"),
        ("####\n7", None),
        ("####", None),
        ("no", None),
        ("#### 1,080 ", "1,080"),
    ],
)
def test_the_last_marker_counts_to_the_end_of_its_line(text, answer):
    assert extract_after("####")(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5.", "5"),
        ("the ANSWER is: $1,200.50! Good.", "$1,200.50"),
        ("Answer: 3\nthen", "3"),
        ("The answer is 4. No, the answer is 3.5.", "3.5"),
        ("An answer is hard", "hard"),
        ("answers 5", None),
        ("the answer is", None),
    ],
)
def test_the_last_answer_is_counts_to_the_end_of_its_sentence(text, answer):
    assert extract_answer_is(text) == answer


def test_the_forms_have_an_order():
    text = r"The answer is 3. $\boxed{2}$ #### 1"
    assert extract_final_answer(text) == "1"
    assert extract_final_answer(text.partition("#")[0]) == "2"
    assert first_of(extract_answer_is, extract_boxed)(text) == "3"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 18 dollars", "18"),
        ("#### $18.50 a day", "$18.50"),
        ("#### -3 apples", "-3"),
        ("#### 1/2 of it", "1/2"),
        ("#### 1 1/2", "1 1/2"),
        ("#### x = 3", "x = 3"),
        ("nothing", None),
    ],
)
def test_a_leading_number_loses_its_unit(text, answer):
    assert leading_number(extract_after("####"))(text) == answer


def test_an_empty_marker_and_no_extractor_are_refused():
    with pytest.raises(ValueError, match="marker is empty"):
        extract_after("")
    with pytest.raises(ValueError, match="extractors is empty"):
        first_of()
