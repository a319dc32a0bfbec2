r"""Where a text says its final answer: functions from text to answer that can be combined."""

import re
from collections.abc import Callable

from selftrain.tasks.answers import parse_number

Extractor = Callable[[str], str | None]
"""Returns the final answer that a text states, or None."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(?=[{0-9])|\s+(?=\S))")
_ANSWER_IS = re.compile(r"\banswer\s*(?:is\b\s*:?|:)", re.IGNORECASE)
_NUMBER_FIRST = re.compile(r"[-+\u2212]?\s*\\?[$€£¥₹]?\s*[-+]?[0-9.][0-9.,]*(?:\s*/\s*[0-9]+)?")


def extract_after(marker: str) -> Extractor:
    r"""Return an extractor of what follows the last ``marker``, up to the end of its line.

    Example:
        >>> extract_after("####")("5 + 3 = 8\n#### 8\nDone.")
        '8'
    """
    if not marker:
        raise ValueError("marker is empty; give what stands before an answer, like '####'.")

    def extract(text: str) -> str | None:
        _, found, rest = text.rpartition(marker)
        line = rest.strip(" \t").partition("\n")[0].strip()
        return line or None if found else None

    return extract


def extract_boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` (or ``\fbox``) holds, with its braces matched.

    A last box that is not closed, because the text was cut off, is no answer, even if an earlier
    one is. ``\boxed 5`` is read as TeX does, as far as a dollar sign or white space.

    Example:
        >>> extract_boxed(r"so $\boxed{1}$, no, $\boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
    """
    start = _end_of_last(_BOX, text)
    if start is None:
        return None
    if text[start] == "{":
        inner = _braced(text, start)
    else:
        inner = re.split(r"[\s$]", text[start:], maxsplit=1)[0].rstrip(".,")
    return inner.strip() or None if inner is not None else None


def extract_answer_is(text: str) -> str | None:
    """Return what follows the last "answer is" or "answer:", up to the end of its sentence.

    Example:
        >>> extract_answer_is("So the answer is $1,200.50. I am sure.")
        '$1,200.50'
    """
    start = _end_of_last(_ANSWER_IS, text)
    if start is None:
        return None
    line = text[start:].strip(" \t").partition("\n")[0]
    sentence = re.split(r"[.!?](?=\s|$)", line, maxsplit=1)[0]
    return sentence.strip() or None


def extract_final_answer(text: str) -> str | None:
    """Return the last "#### x", else the last boxed answer, else the last "answer is x".

    Example:
        >>> extract_final_answer("The answer is 7.")
        '7'
    """
    return _FINAL_ANSWER(text)


def first_of(*extractors: Extractor) -> Extractor:
    r"""Return an extractor that tries others in turn and gives the first answer found.

    Example:
        >>> extract = first_of(extract_after("####"), extract_boxed)
        >>> extract(r"$\boxed{7}$"), extract("none")
        ('7', None)
    """
    if not extractors:
        raise ValueError("extractors is empty; name at least one.")

    def extract(text: str) -> str | None:
        found = (extractor(text) for extractor in extractors)
        return next((answer for answer in found if answer is not None), None)

    return extract


def leading_number(extractor: Extractor) -> Extractor:
    """Return an extractor that keeps only the number that an answer begins with.

    Answers that are a number as a whole, or do not begin with one, are left as they are. It is for
    answers with a unit: the score of GSM8K has always been taken of the number alone.

    Example:
        >>> extract = leading_number(extract_after("####"))
        >>> extract("#### 18 dollars"), extract("#### 1 1/2"), extract("#### eighteen")
        ('18', '1 1/2', 'eighteen')
    """

    def extract(text: str) -> str | None:
        answer = extractor(text)
        if answer is None or parse_number(answer) is not None:
            return answer
        match = _NUMBER_FIRST.match(answer)
        return match.group() if match and parse_number(match.group()) is not None else answer

    return extract


def _end_of_last(pattern: re.Pattern[str], text: str) -> int | None:
    ends = [match.end() for match in pattern.finditer(text)]
    return ends[-1] if ends else None


def _braced(text: str, start: int) -> str | None:
    r"""Return what stands between the brace at ``start`` and its partner; ``\{`` does not count."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : position]
        position += 1
    return None


_FINAL_ANSWER = first_of(extract_after("####"), extract_boxed, extract_answer_is)
