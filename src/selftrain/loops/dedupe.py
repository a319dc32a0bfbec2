"""Which samples say the same: keys to tell them apart, and which one of a kind to keep."""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, Self

from selftrain._core.checks import check_choice
from selftrain.loops.sample import Sample
from selftrain.tasks.expressions import evaluate_expression

DedupeKey = Callable[[Sample], Hashable | None]
"""What is equal for samples that say the same; None leaves the sample out."""
DedupeName = Literal["text", "tokens", "equations"]

_CALCULATION = re.compile(r"<<([^<>]*=[^<>]*)>>")
_RUN = re.compile(r"[-+*/()\d.=%$ \t]*=[-+*/()\d.=%$ \t]*")
_BULLET = re.compile(r"^[-+*][ \t]+", re.M)
_BETWEEN_NUMBERS = re.compile(r"(?<=[\d).%])[ \t]+(?=[\d.$])")
_DECIMAL = re.compile(r"-?\d*\.(\d+)")


def text_key(text: str) -> str:
    """Return a text in Unicode's form NFKC with every run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def equations(text: str) -> tuple[str, ...]:
    """Return the equations between numbers in a text, in order, white space removed.

    Where the text has the calculator marks of GSM8K, ``<<48/2=24>>``, these are its equations.
    Otherwise they are read from the running text, and what is beside a letter or begins with an
    operator is left out: ``2x + 3 = 7`` says nothing that could be checked.

    Example:
        >>> equations("She sold 48 / 2 = 24 clips in May, and 48 + 24 = 72 in all.")
        ('48/2=24', '48+24=72')
    """
    if marked := _CALCULATION.findall(text):
        return tuple("".join(m.split()) for m in marked)
    plain = text.replace("\N{MINUS SIGN}", "-").replace("\N{DIVISION SIGN}", "/")
    plain = re.sub(r"(?<=[\d)])[ \t]*[x\N{MULTIPLICATION SIGN}][ \t]*(?=[\d(])", "*", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = _BULLET.sub("", plain)
    found: list[str] = []
    for run in _RUN.finditer(plain):
        pieces = _BETWEEN_NUMBERS.split(run.group())
        for i, piece in enumerate(pieces):
            before = plain[run.start() - 1 : run.start()] if i == 0 else ""
            after = plain[run.end() : run.end() + 1] if i == len(pieces) - 1 else ""
            if equation := _numeric(piece, before, after):
                found.append(equation)
    return tuple(found)


def is_false(equation: str) -> bool:
    """Return whether an equation is certainly wrong.

    Its sides are compared as fractions; a side written as a decimal may be off by less than one
    unit of its last digit, as rounding and cutting make it (``10/3=3.33``). Sides that cannot be
    evaluated are not judged, nor are two plain numbers: in "a fifth of 50 = 10" the words count.
    """
    sides = equation.split("=")
    values = [_value(side) for side in sides]
    for (left, a), (right, b) in pairwise(zip(sides, values, strict=True)):
        if a is None or b is None or not (_has_operator(left) or _has_operator(right)):
            continue
        allowed = max(_last_unit(left), _last_unit(right))
        if a != b and abs(a - b) >= allowed:
            return True
    return False


def equation_key(sample: Sample) -> Hashable | None:
    """Return the sample's list of equations; None if one is false.

    The key of RFT (arXiv 2308.01825). A text without any equation is known by its words, so
    that not all of these count as one.
    """
    found = equations(sample.text)
    if any(is_false(equation) for equation in found):
        return None
    return found or text_key(sample.text)


def resolve_key(dedupe: DedupeName | DedupeKey) -> DedupeKey:
    """Return the function that a name stands for; functions are returned as they are."""
    if callable(dedupe):
        return dedupe
    check_choice("dedupe", dedupe, ("text", "tokens", "equations"))
    if dedupe == "text":
        return lambda sample: text_key(sample.text)
    return _token_key if dedupe == "tokens" else equation_key


def most_different(samples: Sequence[Sample], keys: Sequence[Hashable]) -> list[int]:
    """Choose one sample of every key: the one furthest from the chosen ones of other keys.

    Distance is the sum of edit distances between texts. As in RFT's algorithm the samples are gone
    through once; one whose key is taken replaces the holder if it is further from those chosen so
    far.

    Args:
        samples: In the order to go through them, which decides between equals.
        keys: Each sample's key.

    Returns:
        The places of the chosen samples, ascending.
    """
    chosen: dict[Hashable, int] = {}
    packed: _Packed | None = None
    for i, key in enumerate(keys):
        if key in chosen:
            new, old = samples[i].text, samples[chosen[key]].text
            if new == old:
                continue
            packed = packed or _Packed.of([samples[j].text for j in chosen.values()])
            # The holder is among the packed: at no distance from itself.
            if packed.distance(new) - edit_distance(new, old) <= packed.distance(old):
                continue
        chosen[key] = i
        packed = None
    return sorted(chosen.values())


def edit_distance(a: str, b: str) -> int:
    """Return the least number of inserted, deleted and replaced characters that make a into b."""
    short, long = sorted((a, b), key=len)
    return _Packed.of([long]).distance(short)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Texts side by side in long integers, a bit for each character and an empty one after each.

    The bit-parallel algorithm of Myers (1999), in the form of Hyyrö (2003), holds a column of the
    table of edit distances as the places where it rises and falls by one. The columns of all texts
    are moved on at once by a dozen operations; the empty bits keep carries inside a text.
    """

    places: dict[str, int]
    """Where each character stands."""
    firsts: int
    """The first bit of every text that is not empty."""
    lasts: int
    """The last bit."""
    full: int
    """All bits of texts."""
    length: int
    """Characters in all."""
    num_empty: int
    """Texts without a character."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        places: dict[str, int] = {}
        firsts = lasts = full = offset = 0
        for text in filter(None, texts):
            own: dict[str, int] = {}
            for i, character in enumerate(text):
                own[character] = own.get(character, 0) | (1 << i)
            for character, bits in own.items():
                places[character] = places.get(character, 0) | (bits << offset)
            firsts |= 1 << offset
            lasts |= 1 << (offset + len(text) - 1)
            full |= ((1 << len(text)) - 1) << offset
            offset += len(text) + 1
        num_empty = sum(not text for text in texts)
        return cls(places, firsts, lasts, full, sum(map(len, texts)), num_empty)

    def distance(self, text: str) -> int:
        """Return the sum of the edit distances between ``text`` and all texts."""
        full, firsts, lasts = self.full, self.firsts, self.lasts
        up, down, total = full, 0, self.length + len(text) * self.num_empty
        for character in text:
            equal = self.places.get(character, 0)
            diagonal = ((((equal & up) + up) ^ up) | equal | down) & full
            right, left = down | (full & ~(diagonal | up)), up & diagonal
            total += (right & lasts).bit_count() - (left & lasts).bit_count()
            right, left = ((right << 1) & full) | firsts, (left << 1) & full
            up, down = left | (full & ~(diagonal | right)), right & diagonal
        return total


def _token_key(sample: Sample) -> Hashable:
    if sample.token_ids is None:
        raise ValueError(
            f'dedupe="tokens": the sample {sample.key} has no token ids, since its server gives '
            'none; use dedupe="text".'
        )
    return sample.token_ids


def _numeric(piece: str, before: str, after: str) -> str | None:
    """Return a stretch of numbers, operators and "=" without white space, if it stands alone."""
    piece = piece.replace("$", "")
    bare = "".join(piece.split()).rstrip(".").removeprefix("=").removesuffix("=")
    touches = (before.isalnum() and not piece[:1].isspace()) or (
        after.isalnum() and not piece[-1:].isspace()
    )
    is_sign = piece.lstrip()[:1] == "-" and piece.lstrip()[1:2] != " "
    is_cut = bare[:1] in ("+", "*", "/") or (bare[:1] == "-" and not is_sign)
    if touches or is_cut or "=" not in bare:
        return None
    return bare


def _value(side: str) -> Fraction | None:
    try:
        return evaluate_expression(side)
    except ValueError:
        return None


def _has_operator(side: str) -> bool:
    return any(operator in side[1:] for operator in "+-*/")


def _last_unit(side: str) -> Fraction:
    """Return one unit of a plain decimal's last digit; 0 for anything else."""
    match = _DECIMAL.fullmatch(side)
    return Fraction(1, 10 ** len(match.group(1))) if match else Fraction(0)
