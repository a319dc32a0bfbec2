import pytest

from selftrain.training.batch import TokenRow, collate

ROWS = (
    TokenRow(prompt_ids=(3, 4, 5), completion_ids=(6, 7, 1)),
    TokenRow(prompt_ids=(8,), completion_ids=(9, 10, 11, 12, 1)),
    TokenRow(prompt_ids=(13, 14, 15, 16), completion_ids=(17, 18, 19), mask=(True, False, True)),
    TokenRow(prompt_ids=(20, 21), completion_ids=(22, 23), mask=(False, False)),
    TokenRow(completion_ids=(24, 25, 26, 1)),
)


@pytest.fixture
def rows():
    """Rows of several lengths, with masks, one with nothing scored, one without a prompt."""
    return ROWS


@pytest.fixture
def batch(rows):
    return collate(rows)


@pytest.fixture
def seq2seq_batch(rows):
    return collate(rows[:4], decoder_start_id=0)
