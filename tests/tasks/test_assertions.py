"""Asserts are split so that what is expected stays here, and mean what Python means by them."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks.assertions import split_assert
from selftrain.tasks.predicates import PredicateError, evaluate, is_constant
from selftrain.tasks.sandbox.guest.values import Opaque


def holds(source: str, *values: object) -> bool:
    split = split_assert(source)
    assert split is not None
    assert len(split.calls) == len(values)
    return split.holds(values)


@pytest.mark.parametrize(
    ("source", "calls", "right", "wrong"),
    [
        ("assert f(1, 'a') == 3", ["f(1, 'a')"], 3, 4),
        ("assert f(1)==(1, [2], {3}, {4: -5})", ["f(1)"], (1, [2], {3}, {4: -5}), None),
        ("assert (3 == f(1)), 'message'", ["f(1)"], 3, 4),
        ("assert f(1) != 3", ["f(1)"], 4, 3),
        ("assert f(1)", ["f(1)"], "a", ""),
        ("assert not f(1)", ["f(1)"], 0, 1),
        ("assert f(1) is True", ["f(1)"], True, 1),
        ("assert f(1) is not None", ["f(1)"], 0, None),
        ("assert f(1) == True", ["f(1)"], 1, "a"),
        ("assert f(1) in (1, 2)", ["f(1)"], 2, 3),
        ("assert 2 in f(1)", ["f(1)"], [2], [3]),
        ("assert 1 <= f(1) < 3", ["f(1)"], 1, 3),
        ("assert set(f(1)) == set([1, 2])", ["set(f(1))"], {2, 1}, {1}),
        ("assert sorted(list(f(1))) == [1]", ["sorted(list(f(1)))"], [1], [2]),
        ("assert sorted(f(1), reverse=True) == [2, 1]", ["f(1)"], [1, 2], [1]),
        ("assert abs(f(1) - 2.5) < 1e-6", ["f(1)"], 2.5, 2.6),
        ("assert math.isclose(f(1), 0.3, rel_tol=1e-3)", ["f(1)"], 0.3001, 0.31),
        ("assert math.isclose(f(1), math.pi)", ["f(1)"], 3.141592653589793, 3.1),
        ("assert round(f(1), 2) == 0.33", ["f(1)"], 1 / 3, 0.5),
        ("assert f(1)[0] == 2", ["f(1)[0]"], 2, 3),
        ("assert f(1)[1:] == 'b'", ["f(1)[1:]"], "b", "c"),
        ("assert f(1).strip() == 'b'", ["f(1).strip()"], "b", "c"),
        ("assert f(1).real == 2", ["f(1).real"], 2, 3),
        ("assert result == 2", ["result"], 2, 3),
        ("assert decode(encode('a')) == 'a'", ["decode(encode('a'))"], "a", "b"),
        ("assert f(1) == 'ab' * 2 + 'c'", ["f(1)"], "ababc", "ab"),
        ("assert f(1) == float('inf')", ["f(1)"], float("inf"), 0),
        ("assert f(1) == 2 ** 70", ["f(1)"], 1 << 70, 0),
    ],
)
def test_an_assert_is_split_and_decided_here(source, calls, right, wrong):
    assert list(split_assert(source).calls) == calls
    assert holds(source, right)
    assert not holds(source, wrong)


def test_several_calls_are_combined():
    source = "assert f(1) == 1 and (f(2) == 2 or not f(3)) and (f(4), 5) == (4, 5)"
    assert split_assert(source).calls == ("f(1)", "f(2)", "f(3)", "f(4)")
    assert holds(source, 1, 0, False, 4)
    assert not holds(source, 1, 0, True, 4)
    assert not holds(source, 1, 2, True, 5)


@pytest.mark.parametrize(
    "source",
    [
        "assert f(1) == f(2)",
        "assert f(1) == sys.getsizeof(3)",
        "assert f(1) == expected",
        "assert f(1) is 1000",
        "assert all(f(x) == x for x in range(3))",
        "assert [f(x) for x in (1, 2)] == [1, 2]",
        "assert (lambda v: v == 3)(f(1))",
        "assert f(1) == f'{3}'",
        "assert {f(1): 2} == {1: 2}",
        "assert f(*args) == 1 if x else 2",
        "x = 1\nassert f(x) == 1",
        "f(1)",
    ],
)
def test_what_cannot_be_split_is_left_whole(source):
    assert split_assert(source) is None


def test_an_assert_about_constants_has_no_calls():
    assert split_assert("assert True").calls == ()
    assert split_assert("assert 1 + 1 == 2").holds(())


def test_no_part_that_is_sent_holds_what_is_expected():
    for source in ("assert f(1) == 77", "assert abs(f(1) - 77) < 1", "assert 77 in f(1)[2]"):
        assert "77" not in " ".join(split_assert(source).calls)


def test_a_broken_test_is_an_error():
    with pytest.raises(SyntaxError):
        split_assert("assert f(1 ==")


def test_a_comparison_that_raises_is_an_error_of_the_program():
    with pytest.raises(PredicateError, match="TypeError"):
        holds("assert f(1) < 3", "a")


def test_an_object_of_unknown_kind_is_true_and_equal_to_nothing():
    opaque = Opaque("Match", True)
    assert holds("assert f(1)", opaque)
    assert holds("assert f(1) is not None", opaque)
    assert not holds("assert f(1) == 1", opaque)
    assert holds("assert not f(1)", Opaque("Empty", False))


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "2**(10**9)",
        "'a' * 10**9",
        "[0] * 10**8",
        "10**9999 * 10**9999 * 10**9999 * 10**9999",
    ],
)
def test_what_would_take_much_time_or_memory_is_refused(text):
    node = ast.parse(text, mode="eval").body
    assert is_constant(node)
    with pytest.raises(PredicateError):
        evaluate(node, {})


CONSTANTS = st.recursive(
    st.integers(-5, 5).map(str) | st.sampled_from(["0.5", "'a'", "True", "None"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(["==", "<", "in", "!="]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(inner, inner).map(lambda t: f"[{t[0]}, {t[1]}]"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]}, {t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]} and not {t[1]})"),
        inner.map(lambda t: f"sorted({t})"),
        inner.map(lambda t: f"len({t})"),
    ),
    max_leaves=8,
)


@given(CONSTANTS)
def test_constants_have_the_value_that_python_gives_them(text):
    try:
        expected = eval(text)
    except (TypeError, ZeroDivisionError):
        with pytest.raises(PredicateError):
            evaluate(ast.parse(text, mode="eval").body, {})
        return
    found = evaluate(ast.parse(text, mode="eval").body, {})
    assert repr(found) == repr(expected)


def test_a_known_function_called_with_constants_is_one_that_the_program_defines():
    split = split_assert("assert sum(10, 15) == 6")
    assert split.calls == ("sum(10, 15)",)
    assert split_assert("assert len([1]) == 1").calls == ("len([1])",)
    assert split_assert("assert set(f(2)) == set([1])").calls == ("set(f(2))",)
