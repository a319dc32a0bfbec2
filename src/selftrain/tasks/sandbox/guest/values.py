"""Python values as JSON that keeps their types: what a program returns on its way to the judge.

Numbers, text, ``None`` and booleans stand for themselves; everything else is a list whose first
element is a tag. Subclasses are written as what they are built on, read through the methods of the
base class, so that an object with an ``__eq__`` of its own has no say in how it compares. Objects
of other kinds become an :class:`Opaque`, which is equal to nothing.
"""

from collections import deque
from collections.abc import ItemsView, KeysView, ValuesView
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 64
MAX_ITEMS = 200_000
MAX_BITS = 1_000_000
MAX_TEXT = 10_000_000
_SMALL, _MAX_EXPONENT = 2**53, 10_000
_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset, "q": deque}


class ValueTooLargeError(Exception):
    """A value is nested too deeply, or too large, to be handed over."""


class Opaque:
    """An object that cannot be handed over: known by the name of its type and its truth only."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, type_name: str, truth: bool) -> None:
        """Keep the name and the truth."""
        self.type_name = type_name
        self.truth = truth

    def __eq__(self, other: object) -> bool:
        """Return False: nothing is known to be equal."""
        return False

    def __bool__(self) -> bool:
        """Return the truth that the object had."""
        return self.truth

    def __repr__(self) -> str:
        """Return a text that says what it stands for."""
        return f"<{self.type_name} object>"


def encode(value: Any) -> Any:
    """Return ``value`` as JSON data.

    Raises:
        ValueTooLargeError: If it is nested deeper than 64 or has more than 200,000 parts, which
            includes all that contain themselves.
    """
    return _encode(value, 0, [MAX_ITEMS])


def _encode(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        raise ValueTooLargeError
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return _encode_int(value)
    if isinstance(value, float):
        return value if type(value) is float else float.__add__(value, 0.0)
    if isinstance(value, str):
        if str.__len__(value) > MAX_TEXT:
            raise ValueTooLargeError
        return str.__getitem__(value, slice(None))
    if isinstance(value, (bytes, bytearray)):
        if len(memoryview(value)) > MAX_TEXT:
            raise ValueTooLargeError
        return ["b" if isinstance(value, bytes) else "a", memoryview(value).hex()]
    if isinstance(value, complex):
        return ["c", complex.__add__(value, 0).real, complex.__add__(value, 0).imag]
    return _encode_container(value, depth + 1, left)


def _encode_int(value: int) -> Any:
    plain = int.__add__(value, 0)
    if -_SMALL < plain < _SMALL:
        return plain
    if plain.bit_length() > MAX_BITS:
        raise ValueTooLargeError
    # Hexadecimal: decimal digits of long integers cost quadratic time and are limited to 4300.
    return ["i", hex(plain)]


def _encode_container(value: Any, depth: int, left: list[int]) -> Any:
    if isinstance(value, dict):
        pairs = dict.items(value)
        return ["d", [[_encode(k, depth, left), _encode(v, depth, left)] for k, v in pairs]]
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, [_encode(item, depth, left) for item in kind.__iter__(value)]]
    if isinstance(value, range):
        return ["r", *(_encode_int(n) for n in (value.start, value.stop, value.step))]
    if isinstance(value, (KeysView, ItemsView)):  # compares as a set does
        return ["s", [_encode(item, depth, left) for item in value]]
    if isinstance(value, ValuesView):
        return ["o", "dict_values", True]
    if isinstance(value, Decimal):
        return ["D", Decimal.__str__(value)]
    if isinstance(value, Fraction):
        return ["F", _encode_int(value.numerator), _encode_int(value.denominator)]
    return ["o", type.__dict__["__name__"].__get__(type(value))[:100], bool(value)]


def decode(data: Any, *, max_hashed: int) -> Any:
    """Return the value that ``data`` stands for.

    Args:
        data: What :func:`encode` made, or what a hostile program says it made.
        max_hashed: Sets and dictionaries with more elements become opaque: elements of equal hash
            would make building them quadratic, at the expense of whoever decodes.

    Raises:
        ValueError: If ``encode`` did not make it.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    try:
        return _decode(data, max_hashed)
    except (TypeError, IndexError, ArithmeticError, RecursionError, ValueError) as error:
        raise ValueError(f"not an encoded value: {error!r:.200}") from error


def _decode(data: Any, limit: int) -> Any:
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("a bare mapping")
        return data
    tag, *parts = data
    if tag in ("l", "t", "q"):
        return {"l": list, "t": tuple, "q": deque}[tag](_decode(item, limit) for item in parts[0])
    if tag in ("s", "z", "d") and len(parts[0]) > limit:
        return Opaque(
            f"{ {'s': 'set', 'z': 'frozenset', 'd': 'dict'}[tag] } of many elements", True
        )
    if tag in ("s", "z"):
        return {"s": set, "z": frozenset}[tag](_decode(item, limit) for item in parts[0])
    if tag == "d":
        return {_decode(k, limit): _decode(v, limit) for k, v in parts[0]}
    return _decode_atom(tag, [_decode(part, limit) for part in parts])


def _decode_atom(tag: str, parts: list[Any]) -> Any:
    if tag == "i":
        return int(parts[0], 16)
    if tag == "b":
        return bytes.fromhex(parts[0])
    if tag == "a":
        return bytearray.fromhex(parts[0])
    if tag == "c":
        return complex(float(parts[0]), float(parts[1]))
    # What is short as data may be long to go through, or to convert.
    if tag == "r":
        found = range(*parts)
        return found if len(found) <= MAX_ITEMS else Opaque("long range", True)
    if tag == "D":
        number = Decimal(parts[0])
        too_far = number.is_finite() and abs(number.adjusted()) > _MAX_EXPONENT
        return Opaque("far Decimal", True) if too_far else number
    if tag == "F":
        return Fraction(parts[0], parts[1])
    if tag == "o":
        return Opaque(str(parts[0]), bool(parts[1]))
    raise ValueError(f"unknown tag {tag!r:.20}")
