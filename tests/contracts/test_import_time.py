"""Importing costs little: no heavy library until a name is used."""

import os
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "numpy", "tyro", "matplotlib", "rich", "triton", "datasets")
TRIES = 5


def run(code: str) -> str:
    # A source checkout can be imported through PYTHONPATH, which -I would ignore.
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"EAGER_IMPORT": ""},
    )
    return done.stdout


@pytest.mark.parametrize("module", ["selftrain", "selftrain.cli", "selftrain.errors"])
def test_nothing_heavy_is_imported(module):
    out = run(f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert out.strip() == "[]"


def test_import_takes_less_than_a_tenth_of_a_second():
    code = "import time; t = time.perf_counter(); import selftrain; print(time.perf_counter() - t)"
    seconds = min(float(run(code)) for _ in range(TRIES))
    assert seconds < 0.1


def test_help_takes_less_than_four_tenths_of_a_second():
    code = "from selftrain.cli import main; main(['--help'])"

    def seconds() -> float:
        start = time.perf_counter()
        assert "distillspec" in run(code)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(TRIES)) < 0.4


def test_help_imports_nothing_heavy():
    code = (
        "import contextlib, io, sys\n"
        "from selftrain.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run(code).strip() == "[]"
