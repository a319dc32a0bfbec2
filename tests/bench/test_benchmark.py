"""``benchmarks/specdec.py`` at its smallest: it runs, counts right, and says what it found."""

import json
from pathlib import Path

import pytest
import torch

from selftrain.bench.synthetic import synthetic_pair

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import specdec

    return specdec


@pytest.mark.parametrize("part", ["verifiers", "coupled"])
def test_a_part_keeps_its_rows_and_ends_with_its_goals(script, part, tmp_path, capsys):
    script.main(script.Args(part=part, quick=True, threads=1, json=tmp_path / "rows.json"))
    saved = json.loads((tmp_path / f"rows_{part}.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert saved["rows"]
    assert lines[-len(saved["goals"]) :] == saved["goals"]
    assert all(line.startswith("goal ") for line in saved["goals"])


@pytest.mark.parametrize(("part", "num"), [("batch", 2), ("coupled", 2)])
def test_exactness_is_found_to_hold(script, part, num):
    exact = [goal for goal in script.PARTS[part](True).goals if "unlike" in goal.name]
    assert len(exact) == num
    assert all(goal.met for goal in exact)


def test_rows_that_depend_on_their_batch_are_counted(script, monkeypatch):
    """The check of exactness can fail: here a row alone is drawn with another seed."""
    generate = script.SpeculativeDecoder.generate

    def other_seeds(self, input_ids, *, seeds, **options):
        moved = [seed + 1 for seed in seeds] if len(seeds) == 1 else list(seeds)
        return generate(self, input_ids, seeds=moved, **options)

    monkeypatch.setattr(script.SpeculativeDecoder, "generate", other_seeds)
    pair = synthetic_pair("tiny", dtype=torch.float64)
    assert script._rows_unlike_alone(pair, 1.0, num_new=8) == 8


def test_the_standard_error_of_a_ratio_is_its_spread_over_repetitions(script):
    """Tokens per call from many small samples scatter as the error of each of them says."""
    import specdec_exact

    rng = torch.Generator().manual_seed(0)
    found, errors = [], []
    for _ in range(400):
        calls = torch.randint(20, 60, (50,), generator=rng).double()
        ratio, deviations = specdec_exact.tokens_per_call(100, calls)
        found.append(ratio)
        errors.append(specdec_exact.standard_error(deviations))
    spread = float(torch.tensor(found).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)
