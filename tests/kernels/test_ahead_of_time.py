"""Every kernel compiles for GPUs that are not here, without spilling registers by the hundred."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("ahead_of_time.py")
KERNELS = {
    "best_kernel",
    "compare_kernel",
    "decide_kernel",
    "digit_kernel",
    "emit_kernel",
    "residual_kernel",
    "sample_kernel",
    "stats_kernel",
    "threshold_kernel",
}
MOST_BYTES_SPILLED = 64


def check(extent: str) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), extent], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    empty = [entry["kernel"] for entry in found if not (entry["ptx"] and entry["cubin"])]
    assert not empty
    spilling = [entry for entry in found if entry["spilled"] > MOST_BYTES_SPILLED]
    assert not spilling
    return found


def test_every_kernel_compiles_for_sm_80_or_sm_90():
    found = check("some")
    assert {entry["kernel"].split()[0] for entry in found} == KERNELS


@pytest.mark.slow
def test_every_kernel_compiles_in_every_mode_and_type_for_sm_80_and_sm_90():
    labels = {entry["kernel"] for entry in check("all")}
    for kernel in KERNELS - {"compare_kernel"}:
        for arch in ("sm_80", "sm_90"):
            for dtype in ("*bf16", "*fp16", "*fp32"):
                assert any(label.startswith(f"{kernel} {arch} {dtype}") for label in labels)
