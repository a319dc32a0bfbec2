"""Run the tests that need the Triton interpreter, a file at a time, in processes that have it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selftrain.kernels._dispatch import INTERPRETED

pytest.importorskip("triton")
FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))


@pytest.mark.skipif(INTERPRETED, reason="the files are collected themselves")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels_agree_with_the_reference_under_the_interpreter(path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
