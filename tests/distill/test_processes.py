"""Runs in processes of their own: killed and resumed, and two together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import worker
from safetensors.torch import load_file

WORKER = str(Path(worker.__file__))


def environment():
    source = Path(__file__).parents[2] / "src"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), str(Path(WORKER).parent)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def newest_step(folder):
    steps = [int(p.name[11:19]) for p in folder.glob("checkpoint-*.safetensors")]
    return max(steps, default=0)


def run_until_killed(folder, num_steps, kill_at):
    process = subprocess.Popen([sys.executable, WORKER, folder, str(num_steps)], env=environment())
    deadline = time.monotonic() + 120
    while newest_step(folder) < kill_at:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


def finish(command, timeout=180):
    result = subprocess.run(
        command, env=environment(), timeout=timeout, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def test_a_run_killed_twice_ends_with_the_bits_of_one_left_alone(tmp_path):
    num_steps = 60
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish([sys.executable, WORKER, whole, str(num_steps)])
    for kill_at in (7, 20):
        run_until_killed(killed, num_steps, kill_at)
        assert newest_step(killed) < num_steps
    finish([sys.executable, WORKER, killed, str(num_steps)])
    name = f"checkpoint-{num_steps:08d}.safetensors"
    assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert losses(whole) == losses(killed)


@pytest.mark.parametrize("where", [[], ["server"]], ids=["in-process", "server"])
def test_two_processes_give_the_result_of_one(tmp_path, where):
    one, two = tmp_path / "one", tmp_path / "two"
    finish([sys.executable, WORKER, one, "4"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finish([*torchrun, "--nproc_per_node", "2", WORKER, two, "4", *where])
    reports = [json.loads((two / f"finished{rank}.json").read_text()) for rank in (0, 1)]
    assert reports == [{"rank": 0, "world": 2}, {"rank": 1, "world": 2}]
    for a, b in zip(losses(one), losses(two), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    name = "checkpoint-00000004.safetensors"
    a, b = load_file(one / name), load_file(two / name)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
