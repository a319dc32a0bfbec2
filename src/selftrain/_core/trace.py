"""A decoded sample token by token: what plots and reports draw."""

import re
from collections.abc import Sequence
from typing import Literal

from selftrain._core.checks import check_choice, check_not_empty

TokenStatus = Literal["prompt", "accepted", "rejected", "target"]
"""Where a token of a trace comes from; a rejected one is not part of the text."""

LEGEND: dict[TokenStatus, str] = {
    "prompt": "prompt",
    "accepted": "drafted, accepted",
    "rejected": "drafted, rejected",
    "target": "written by the target",
}

_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"})


def check_trace(tokens: Sequence[str], status: Sequence[TokenStatus]) -> None:
    """Raise ``ValueError`` unless there is one known status for each of at least one token."""
    check_not_empty("tokens", tokens)
    if len(tokens) != len(status):
        raise ValueError(
            f"status must have one entry for each token, got {len(status)} for {len(tokens)}."
        )
    for value in sorted(set(status)):
        check_choice("status", value, LEGEND)


def visible(token: str) -> str:
    """Return ``token`` with one mark for each blank, tab, line end and unprintable character.

    A no-break space stays as it is.
    """
    marked = token.translate(_VISIBLE)
    return "".join(c if c.isprintable() or c == "\xa0" else "□" for c in marked)


def rows_of(token: str, status: TokenStatus) -> list[str]:
    """Return the parts of ``token`` that stand on lines of their own, line ends included.

    A rejected token is one part: its line end is not in the text, so it breaks no line.
    """
    return [token] if status == "rejected" else re.findall(r"[^\n]*\n|[^\n]+", token)
