"""Every kernel compiles for GPUs that are not here, without spilling registers by the hundred."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selftrain.ops.divergence import DIVERGENCES

pytest.importorskip("triton")
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
HL_GAUSS_KERNELS = {"loss_kernel", "gradient_kernel"}
DIVERGENCE_KERNELS = {"row_stats_kernel", "sweep_kernel"}
MOST_BYTES_SPILLED = 64
# So that two programs of eight warps share a multiprocessor.
MOST_REGISTERS = 128


def check(extent: str, script: str = "ahead_of_time.py") -> list[dict]:
    path = Path(__file__).with_name(script)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(path), extent], capture_output=True, text=True, env=environment
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


def test_the_kernels_of_divergences_compile_for_sm_80_or_sm_90():
    found = check("some", "ahead_of_time_divergence.py")
    assert {entry["kernel"].split()[0] for entry in found} == DIVERGENCE_KERNELS
    assert max(entry["registers"] for entry in found) <= MOST_REGISTERS


@pytest.mark.slow
def test_divergences_compile_for_every_kind_and_type_of_gradient_for_sm_80_and_sm_90():
    found = check("all", "ahead_of_time_divergence.py")
    assert max(entry["registers"] for entry in found) <= MOST_REGISTERS
    labels = [entry["kernel"] for entry in found if "'GRAD': True" in entry["kernel"]]
    for kind in DIVERGENCES:
        for arch in ("sm_80", "sm_90"):
            for dtype in ("*bf16", "*fp16", "*fp32"):
                start = f"sweep_kernel {arch} {dtype}"
                assert any(label.startswith(start) and f"'{kind}'" in label for label in labels)


def test_the_kernels_of_hl_gauss_compile_for_sm_80_and_sm_90():
    found = check("some", "ahead_of_time_hl_gauss.py")
    assert {entry["kernel"].split()[0] for entry in found} == HL_GAUSS_KERNELS
    assert max(entry["registers"] for entry in found) <= MOST_REGISTERS


@pytest.mark.slow
def test_hl_gauss_compiles_for_every_type_for_sm_80_and_sm_90():
    found = check("all", "ahead_of_time_hl_gauss.py")
    assert max(entry["registers"] for entry in found) <= MOST_REGISTERS
    labels = [entry["kernel"] for entry in found]
    for arch in ("sm_80", "sm_90"):
        for dtype in ("*bf16", "*fp16", "*fp32"):
            start = f"gradient_kernel {arch} {dtype}"
            assert any(label.startswith(start) for label in labels)
