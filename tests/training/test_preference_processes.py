"""Preference runs in processes of their own: killed and resumed, and two together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import preference_worker
import pytest
from safetensors.torch import load_file

WORKER = str(Path(preference_worker.__file__))


def environment():
    source = Path(__file__).parents[2] / "src"
    return {
        **os.environ,
        "PYTHONPATH": str(source),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def finish(command):
    result = subprocess.run(
        command, env=environment(), timeout=180, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("stage", "sequences_per_second")} for row in rows
    ]


# One pass, and passes that split groups: the busier process makes more of them than the other.
@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", ["16384", "45"])
def test_two_processes_give_the_gradients_of_one(tmp_path, max_tokens):
    one, two = tmp_path / "one", tmp_path / "two"
    finish([sys.executable, WORKER, one, "3", max_tokens])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finish([*torchrun, "--nproc_per_node", "2", WORKER, two, "3", max_tokens])
    alone = json.loads((one / "finished0.json").read_text())
    for rank in (0, 1):
        found = json.loads((two / f"finished{rank}.json").read_text())
        assert found["world"] == 2
        assert found["log_probs"] == pytest.approx(alone["log_probs"], abs=1e-5)
    assert len(lines(one)) == 3
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    name = "checkpoint-00000003.safetensors"
    a, b = load_file(one / name), load_file(two / name)
    for key in a:
        # Adam's first moment is a running mean of gradients.
        tolerance = 1e-6 if "exp_avg/" in key else 1e-4
        assert (a[key] - b[key]).abs().max() < tolerance, key


@pytest.mark.slow
def test_a_run_killed_twice_ends_with_the_bits_of_one_left_alone(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish([sys.executable, WORKER, whole, "60", "45"])
    for kill_at in (7, 20):
        process = subprocess.Popen([sys.executable, WORKER, killed, "60", "45"], env=environment())
        deadline = time.monotonic() + 120
        while newest_step(killed) < kill_at:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run makes no progress"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    finish([sys.executable, WORKER, killed, "60", "45"])
    name = "checkpoint-00000060.safetensors"
    assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert lines(whole) == lines(killed)


def newest_step(folder):
    return max((int(p.name[11:19]) for p in folder.glob("checkpoint-*.safetensors")), default=0)
