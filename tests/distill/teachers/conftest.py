import importlib.util
import sys
import types
from dataclasses import dataclass

import pytest

from selftrain.training.batch import TokenRow, collate

if importlib.util.find_spec("selftrain.ops.linear_divergence") is None:
    # Stands in for the head of the fused loss where that is not there.
    @dataclass(frozen=True)
    class _Head:
        weight: object
        bias: object = None
        scale: float = 1.0
        softcap: float | None = None

    stub = types.ModuleType("selftrain.ops.linear_divergence")
    stub.Head = _Head
    sys.modules[stub.__name__] = stub

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
