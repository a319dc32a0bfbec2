"""Final answers: one spelling, exact equality, classes."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks import answer_classes, canonical_answer, parse_number, same_answer

fractions = st.fractions(max_denominator=10**6)
# Text made of what the rules look at, besides any text at all.
awkward = st.lists(
    st.sampled_from([*"0123456789.,/-+eE%$€ ^*`\\{}()²½⁄−\u00a0\n", "frac", r"\text{", "nan", "x"]),
    max_size=12,
).map("".join)
texts = st.one_of(st.text(max_size=20), awkward)


@given(texts)
def test_the_canonical_form_is_its_own_canonical_form(text):
    once = canonical_answer(text)
    assert canonical_answer(once) == once


@given(texts, texts)
def test_equality_is_symmetric_and_follows_the_canonical_form(one, other):
    assert same_answer(one, other) == same_answer(other, one)
    if same_answer(one, other):
        assert canonical_answer(one) == canonical_answer(other)


@given(fractions)
def test_every_spelling_of_a_number_reads_as_that_number(number):
    top, bottom = number.numerator, number.denominator
    sign = "-" if top < 0 else ""
    whole, rest = divmod(abs(top), bottom)
    spellings = [
        f"{top}/{bottom}",
        f" ${top} / {bottom}. ",
        rf"${sign}\frac{{{abs(top)}}}{{{bottom}}}$",
        f"{sign}{whole} {rest}/{bottom}",
        f"{top * 3}/{bottom * 3}",
        str(number).replace("-", "\u2212"),
    ]
    assert {parse_number(canonical_answer(text)) for text in spellings} == {number}


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_decimals_with_commas_currency_and_zeros_are_exact(digits, places):
    number = Fraction(digits, 10**places)
    sign = "-" if digits < 0 else ""
    whole, rest = divmod(abs(digits), 10**places)
    decimal = f"{rest:0{places}}" if places else ""
    for text in (
        f"{sign}{whole:,}.{decimal}00",
        f"{sign}${whole}.{decimal}",
        f"$ {sign}{whole:,}.{decimal}0",
        f"**{sign}{whole}.{decimal}0**.",
        f"{sign}{whole}.{decimal}0e0",
    ):
        assert canonical_answer(text) == str(number)


@given(fractions, fractions)
def test_numbers_are_the_same_answer_only_if_they_are_equal(one, other):
    assert same_answer(str(one), str(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10²", None),  # not 102, which is what NFKC makes of it
        ("1½", Fraction(3, 2)),  # and not 11/2
        ("½", Fraction(1, 2)),
        ("１２３", Fraction(123)),
        (r"1{,}234", Fraction(1234)),
        (r"10,\!080", Fraction(10080)),
        (r"\$5.00", Fraction(5)),
        ("5€", Fraction(5)),
        (r"50\%", Fraction(50)),
        (r"-\frac34", Fraction(-3, 4)),
        (".5", Fraction(1, 2)),
        ("2.5e-3", Fraction(1, 400)),
        ("-1 1/2", Fraction(-3, 2)),
        ("+7", Fraction(7)),
        ("--7", None),
        ("1,2", None),
        ("1,00", None),
        ("1/0", None),
        ("1e999", None),
        ("9" * 500, None),
        ("", None),
        ("٣", None),  # a digit of another script: no guess
        ("0x10", None),
        ("1_000", None),
    ],
)
def test_what_is_and_what_is_not_a_number(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-Infinity", "", " . "])
def test_not_a_number_infinity_and_nothing_equal_nothing(text):
    assert not same_answer(text, text)
    assert not same_answer(text, "1")


def test_text_is_compared_with_case_and_without_its_wrapping():
    assert same_answer(r"$\text{Tuesday}$", " Tuesday. ")
    assert not same_answer("A", "a")
    assert not same_answer("10²", "102")
    assert same_answer("10²", "10^2")


@given(st.lists(st.one_of(st.none(), st.integers(0, 12).map(str)), max_size=10))
def test_classes_are_the_connected_components_of_equality(answers):
    def near(one, other):
        return abs(int(one) - int(other)) <= 1

    found = answer_classes(answers, near)
    numbers = sorted({int(a) for a in answers if a is not None})
    component = {n: i for i, n in enumerate(numbers)}
    for one, other in itertools.pairwise(numbers):  # a run of neighbours is one component
        if other - one <= 1:
            component[other] = component[one]
    for (one, a), (other, b) in itertools.product(zip(answers, found, strict=True), repeat=2):
        if one is None or other is None:
            assert (a is None) == (one is None)
        else:
            assert (a == b) == (component[int(one)] == component[int(other)])


def test_a_class_goes_by_its_first_member_and_asks_in_both_directions():
    def only_one_way(one, other):
        return (one, other) == ("3", "x=3")

    assert answer_classes(["x=3", None, "3", "4"], only_one_way) == ["x=3", None, "x=3", "4"]
