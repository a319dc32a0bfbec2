"""Final answers: one spelling for each, exact comparison, and classes for majority votes."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

_LONGEST_NUMBER = 400  # characters, and the largest power of ten: what a checker has to hold
_CURRENCY = "$€£¥₹"
_MINUS_SIGNS = {ord(c): "-" for c in "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"}
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DECIMAL += r"(?:[eE][-+]?[0-9]{1,3})?"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<currency>\\?[{_CURRENCY}])?\s*(?P<inner>[-+]?)\s*"
    rf"(?:\\[dt]?frac\s*(?:\{{(?P<top>{_DECIMAL})\}}\s*\{{(?P<bottom>{_DECIMAL})\}}"
    rf"|(?P<top1>[0-9])\s*(?P<bottom1>[0-9]))"
    rf"|(?:(?P<whole>[0-9]+)\s+)?(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<decimal>{_DECIMAL}))"
    rf"\s*(?:\\?%|[{_CURRENCY}])?"
)
_WRAPPED = re.compile(
    r"\$\$?(?P<dollars>[^$]+)\$\$?|\\\((?P<parens>.+)\\\)|\\\[(?P<brackets>.+)\\\]"
    r"|\*\*(?P<bold>[^*]+)\*\*|`(?P<code>[^`]+)`|\\(?:text|mathrm|textbf)\{(?P<text>[^{}]*)\}",
    re.DOTALL,
)
_LATEX_COMMAS = re.compile(r"\{,\}|\\!,\\!|,\\!|\\!,|(?<=[0-9])\\,(?=[0-9]{3})")
_NOT_FINITE = re.compile(r"[-+]?\s*(?:nan|inf|infinity)", re.IGNORECASE)


def canonical_answer(text: str) -> str:
    r"""Return one spelling for all ways to write the same final answer.

    Unicode is brought to NFKC (after superscripts and vulgar fractions are set apart, which NFKC
    would run together with the digit before them); white space, enclosing ``$...$``, ``**...**``
    and ``\text{...}``, and a trailing full stop are dropped. What reads as a number becomes an
    integer or a fraction in lowest terms, without thousands commas, currency or per cent sign (a
    per cent sign is a unit here: 20% is 20). Anything else stays text, upper and lower case kept.
    Applying it twice changes nothing more.

    Example:
        >>> [canonical_answer(text) for text in ("$1,250.50.", "**-0.50**", " x  + 1.")]
        ['2501/2', '-1/2', 'x + 1']
    """
    before = None
    while text != before:  # each pass only takes away, so that this ends
        before = text
        text = _compatible(text)
        text = re.sub(r"\s+", " ", text).strip().rstrip(". ")
        if match := _WRAPPED.fullmatch(text):
            text = next(part for part in match.groups() if part is not None)
    number = parse_number(text)
    return text if number is None else str(number)


def parse_number(text: str) -> Fraction | None:
    r"""Read a number exactly; None where the text is none.

    Integers, decimals (``1,234.50``, ``.5``, ``2e-3``), fractions (``3/4``, ``1 1/2``,
    ``\frac{3}{4}``), with a sign, a currency sign or a per cent sign, which both are ignored.
    Fractions by zero, misplaced commas (``1,2``), and numbers too long to be an answer are none.

    Example:
        >>> parse_number("$1,234.50"), parse_number("1,2"), parse_number("nan")
        (Fraction(2469, 2), None, None)
    """
    text = _LATEX_COMMAS.sub(lambda m: "" if m.group() == r"\," else ",", _compatible(text))
    text = text.strip().rstrip(". ")
    if len(text) > _LONGEST_NUMBER or not (match := _NUMBER.fullmatch(text)):
        return None
    part = match.groupdict()
    if part["sign"] and part["inner"]:
        return None
    sign = -1 if "-" in (part["sign"], part["inner"]) else 1
    above = part["top"] or part["top1"] or part["over"] or part["decimal"]
    below = part["bottom"] or part["bottom1"] or part["under"] or "1"
    top, bottom = _decimal(above), _decimal(below)
    if top is None or not bottom:
        return None
    return sign * (int(part["whole"] or 0) + top / bottom)


def is_not_finite(text: str) -> bool:
    """Return whether a text spells NaN or infinity as floating point does, which equals nothing."""
    return _NOT_FINITE.fullmatch(text.strip()) is not None


def same_answer(first: str, second: str) -> bool:
    """Return whether two final answers are equal: as exact numbers if both are, else as text.

    Text is compared in the form of :func:`canonical_answer`. An empty text, NaN and infinity
    (``nan``, ``inf``) equal nothing, themselves included.

    Example:
        >>> same_answer("1,000", "$1000.00"), same_answer("1/3", "0.3333")
        (True, False)
    """
    one, other = canonical_answer(first), canonical_answer(second)
    return one == other and bool(one) and not is_not_finite(one)


def answer_classes(
    answers: Sequence[str | None], equal: Callable[[str, str], bool]
) -> list[str | None]:
    """Put answers into classes by union-find, which makes ``equal`` transitive.

    Every class goes by its first member, so that answers can be counted by name. Answers that are
    ``equal`` to one another only through a third are in one class.

    Args:
        answers: Final answers; None (a text that had none) belongs to no class.
        equal: Whether two answers are the same; may be asked in either order.

    Returns:
        The name of each answer's class, None for None.

    Example:
        >>> near = lambda a, b: abs(float(a) - float(b)) <= 1
        >>> answer_classes(["1", None, "3", "2"], near)
        ['1', None, '1', '1']
    """
    names = list(dict.fromkeys(answer for answer in answers if answer is not None))
    parent = list(range(len(names)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for second in range(len(names)):
        for first in range(second):
            one, other = root(first), root(second)
            if one != other and (
                equal(names[first], names[second]) or equal(names[second], names[first])
            ):
                parent[max(one, other)] = min(one, other)
    found = {name: names[root(index)] for index, name in enumerate(names)}
    return [None if answer is None else found[answer] for answer in answers]


def _compatible(text: str) -> str:
    """Return the text in NFKC, with superscripts and vulgar fractions kept apart from digits."""
    if text.isascii():
        return text
    spelled: list[str] = []
    for character in text:
        kind = unicodedata.decomposition(character).partition(" ")[0]
        if kind == "<super>" and not (spelled and spelled[-1].startswith("^")):
            character = "^" + character
        elif kind == "<fraction>":
            character = " " + character
        spelled.append(character)
    text = unicodedata.normalize("NFKC", "".join(spelled)).translate(_MINUS_SIGNS)
    return text.replace("\u2044", "/")


def _decimal(text: str) -> Fraction | None:
    digits, _, exponent = text.replace(",", "").lower().partition("e")
    if abs(int(exponent or 0)) > _LONGEST_NUMBER:
        return None
    return Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent or 0)
