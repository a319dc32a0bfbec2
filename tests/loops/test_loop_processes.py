"""A loop run by two processes together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from selftrain.loops.store import SampleStore

WORKER = str(Path(__file__).with_name("loop_worker.py"))


def finish(command):
    source = Path(__file__).parents[2] / "src"
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        command, env=environment, timeout=180, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_give_the_run_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    finish([sys.executable, WORKER, one])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finish([*torchrun, "--nproc_per_node", "2", WORKER, two])
    reports = [json.loads((two / f"finished{rank}.json").read_text()) for rank in (0, 1)]
    assert reports == [{"rank": 0, "world": 2}, {"rank": 1, "world": 2}]
    first = "rounds/000"
    written = (two / first / "samples").glob("samples-*.jsonl")
    assert {int(path.name.split("-")[1]) for path in written} == {0, 1}
    drawn = [
        [(s.key, s.token_ids, s.score) for s in SampleStore(run / first / "samples").load()]
        for run in (one, two)
    ]
    assert drawn[0] == drawn[1]
    # The first round's rows depend on no sum over processes; the second's only by rounding.
    assert (one / first / "train.jsonl").read_bytes() == (two / first / "train.jsonl").read_bytes()
    for number in ("000", "001"):
        a, b = (load_file(run / f"rounds/{number}/model/model.safetensors") for run in (one, two))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
