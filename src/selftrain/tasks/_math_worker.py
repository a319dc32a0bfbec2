"""Compare formulas for :class:`selftrain.tasks.MathGrader`, in a process of its own.

It is run as a file (``python -P _math_worker.py SECONDS BYTES``), needs nothing of this package,
reads requests from stdin and writes replies to stdout, one JSON object a line. The kernel ends it
when a request takes more than SECONDS of processor time, even inside one long integer operation
and even if its parent is gone; it ends by itself when stdin is closed.
"""

import json
import logging
import os
import re
import signal
import sys
from functools import lru_cache
from typing import Any

_OPENING, _CLOSING = "([{", ")]}"


@lru_cache(maxsize=1024)
def parse(answer: str) -> list[Any]:
    """Return the expression that an answer denotes in a list, or an empty list."""
    import math_verify

    formula = re.sub(r"^\$+|\$+$", "", answer.strip())
    config = math_verify.LatexExtractionConfig(boxed_match_priority=-1)
    return math_verify.parse(
        f"${formula}$",
        extraction_config=[config],
        fallback_mode="no_fallback",  # else what cannot be parsed comes back as text
        parsing_timeout=0,  # none: its own limit would take the alarm signal
    )


def parts(answer: str) -> tuple[str, list[str]]:
    r"""Return the brackets around an answer, if they enclose all of it, and its parts.

    ``1, 2`` and ``\{1, 2\}`` have no brackets: they are sets. ``a \pm b`` has two parts.
    """
    text = re.sub(r"\\(?:left|right|,|;|!|:|\s)", "", answer.strip().strip("$").strip())
    text = re.sub(r"\{,\}", "", text)
    while text.startswith("{") and _encloses(text):  # a group, which is not printed
        text = text[1:-1].strip()
    inner, brackets = text, ""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2]
    elif text[:1] in "([" and text[-1:] in ")]" and _encloses(text):
        inner, brackets = text[1:-1], text[0] + text[-1]
    found = []
    for part in _split(inner):
        signs = "+-" if r"\pm" in part else "."
        found += [part.replace(r"\pm", sign) for sign in signs]
    if len(found) == 1:  # brackets around a single thing are punctuation
        return "", found
    return brackets, found


def equal(reference: str, answer: str, *, strict: bool) -> bool:
    """Return whether an answer equals the reference; in parts if ``strict``."""
    if not strict:
        return _verify(reference, answer)
    brackets, wanted = parts(reference)
    other_brackets, given = parts(answer)
    if len(wanted) == len(given) == 1:
        return _verify(reference, answer)
    if brackets != other_brackets:
        return False
    if brackets:
        return len(wanted) == len(given) and all(map(_verify, wanted, given))
    table = [[_verify(one, other) for other in given] for one in wanted]
    return all(map(any, table)) and all(map(any, zip(*table, strict=True)))


def canonical(answer: str) -> str | None:
    """Return the simplified expression as text, or None where there is none."""
    import sympy

    expressions = parse(answer)
    if not expressions:
        return None
    expression = expressions[0]
    if isinstance(expression, sympy.Eq) and isinstance(expression.lhs, sympy.Symbol):
        expression = expression.rhs
    return str(sympy.simplify(expression))


def _verify(reference: str, answer: str) -> bool:
    import math_verify

    return math_verify.verify(parse(reference), parse(answer), timeout_seconds=None)


def _encloses(text: str) -> bool:
    """Return whether the first bracket of a text is closed by its last character."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return position == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    r"""Split at commas, semicolons, "and" and "or" that stand outside all brackets."""
    depth, start, found = 0, 0, []
    separator = re.compile(r",(?![0-9]{3}(?![0-9]))|;|\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b")
    position = 0
    while position < len(text):
        match = separator.match(text, position) if depth == 0 else None
        if match:
            found.append(text[start : match.start()])
            start = position = match.end()
            continue
        depth += (text[position] in _OPENING) - (text[position] in _CLOSING)
        position += 1
    found.append(text[start:])
    return [part.strip() for part in found if part.strip()]


def answer_request(request: dict[str, Any]) -> Any:
    """Return what a request asks for."""
    if request["op"] == "parse":
        return bool(parse(request["answer"]))
    if request["op"] == "canonical":
        return canonical(request["answer"])
    return equal(request["reference"], request["answer"], strict=request["strict"])


def main(seconds: float, memory: int) -> None:
    """Answer requests until stdin is closed."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get among the replies
    limited = os.name == "posix"
    if limited:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    try:
        parse("1")
    except ImportError as error:
        replies.write(json.dumps({"error": str(error)}) + "\n")
        return
    replies.write(json.dumps({"result": "ready"}) + "\n")
    for line in sys.stdin:
        if limited:  # the default action of this signal is to end the process
            signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = {"result": answer_request(json.loads(line))}
        except Exception as error:  # sympy raises all kinds
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        if limited:
            signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
