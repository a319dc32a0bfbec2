"""Values survive the way out of the sandbox with their types, and nothing else does."""

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks.sandbox.guest.values import Opaque, ValueTooLargeError, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
)
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.sets(HASHABLE, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.builds(deque, st.lists(inner))
    ),
    max_leaves=20,
)


def through(value):
    return decode(json.loads(json.dumps(encode(value))), max_hashed=4096)


def same(left, right) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left == right and all(same(v, right[k]) for k, v in left.items())
    return left == right


@given(VALUES)
def test_a_value_comes_back_equal_and_of_the_same_type(value):
    assert same(through(value), value)


def test_numbers_without_order_come_back():
    assert math.isnan(through(math.nan))
    assert through([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert math.copysign(1, through(-0.0)) == -1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (enum.IntEnum("E", "A")(1), 1),
        ({1: 2}.keys(), {1}),
        ({1: 2}.items(), {(1, 2)}),
        (range(3), range(3)),
        (bytearray(b"a"), bytearray(b"a")),
    ],
)
def test_a_subclass_comes_back_as_what_it_is_built_on(value, plain):
    assert through(value) == plain
    assert type(through(value)) is type(plain)


@pytest.mark.parametrize("value", [iter([1]), object(), len, int, {1: 2}.values(), map(abs, [1])])
def test_other_objects_equal_nothing(value):
    found = through(value)
    assert isinstance(found, Opaque)
    assert found != found
    assert bool(found) is True
    assert type(value).__name__ in repr(found)


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def _cyclic() -> list:
    value: list = []
    value.extend([value, value])
    return value


@pytest.mark.parametrize(
    "value",
    [_nested(100), _cyclic(), [0] * 300_000, 1 << 2_000_000, "a" * 10_000_001],
    ids=["deep", "contains itself", "many parts", "integer", "text"],
)
def test_what_is_too_large_or_deep_is_refused(value):
    with pytest.raises(ValueTooLargeError):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        ["x"],
        ["i", 3],
        ["i", "zz"],
        ["l"],
        ["l", 3],
        ["s", [["l", []]]],
        ["d", [[1]]],
        ["F", 1, 0],
        ["D", "x"],
        ["c", "a", "b"],
        ["r", 1.5],
        ["b", "0"],
        [["l", []]],
        ["s", 3],
        json.loads("[" * 900 + "]" * 900),
    ],
)
def test_what_encode_did_not_make_is_refused(data):
    with pytest.raises(ValueError, match="not an encoded value"):
        decode(data, max_hashed=10)


def test_what_would_cost_the_reader_much_is_not_built():
    assert isinstance(decode(["s", list(range(11))], max_hashed=10), Opaque)
    assert isinstance(decode(["d", [[i, 0] for i in range(11)]], max_hashed=10), Opaque)
    assert isinstance(decode(["r", 0, ["i", hex(10**15)], 1], max_hashed=10), Opaque)
    assert isinstance(decode(["D", "1E+999999999"], max_hashed=10), Opaque)
    assert decode(["D", "NaN"], max_hashed=1).is_nan()
