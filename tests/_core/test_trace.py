"""Traces: what is shown of a token stands for all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain._core.trace import rows_of, visible


@given(st.text())
def test_every_character_is_shown_by_one_printable_character(token):
    shown = visible(token)
    assert len(shown) == len(token)
    assert all(c.isprintable() or c == "\xa0" for c in shown)
    assert not {" ", "\n", "\t", "\r"} & set(shown)


@given(st.text(st.sampled_from("a\n \r")), st.sampled_from(["prompt", "accepted", "target"]))
def test_rows_join_to_the_token_and_end_where_its_lines_end(token, status):
    rows = rows_of(token, status)
    assert "".join(rows) == token
    assert all(row.endswith("\n") and row.count("\n") == 1 for row in rows[:-1])


@pytest.mark.parametrize("token", ["\n", "a\nb\n"])
def test_a_rejected_line_end_starts_no_row(token):
    assert rows_of(token, "rejected") == [token]
