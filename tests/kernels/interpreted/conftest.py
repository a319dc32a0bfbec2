"""Set up the tests that need the interpreter: their imports, and numpy's warnings."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


def pytest_collection_modifyitems(items):
    # Kernels rely on IEEE arithmetic, as GPUs do: log(0) is -inf, inf - inf is NaN.
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
