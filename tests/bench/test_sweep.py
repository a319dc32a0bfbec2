import json

import pytest
import torch

from selftrain._core.config import from_dict, to_dict
from selftrain._core.io import read_json, read_jsonl
from selftrain.bench import specdec, sweep
from selftrain.bench.decoders import PEER_ASSISTED, PEER_PLAIN, PLAIN, SPECULATIVE, Decoded
from selftrain.bench.harness import Goal
from selftrain.bench.memory import peak_memory
from selftrain.bench.pair import Pair
from selftrain.bench.specdec import Case, measure_case
from selftrain.bench.sweep import SpecdecConfig, run_sweep
from selftrain.bench.synthetic import synthetic_pair
from selftrain.errors import RunConflictError

SMALL = {"pair": "tiny", "max_new_tokens": 8, "prompt_tokens": 4, "repeats": 2}


def config(**changes):
    return SpecdecConfig(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep over two cases, with everything it wrote."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = run_sweep(config(batch_sizes=(1, 2), temperatures=(1.0,)), folder, show_progress=False)
    return folder, rows


def test_every_combination_is_a_case_and_greedy_ones_have_one_verifier():
    full = config(
        dtypes=("float32", "bfloat16"),
        batch_sizes=(1, 4),
        num_draft_tokens=(2, "auto"),
        temperatures=(0.0, 1.0),
        verifiers=("token", "block"),
    )
    cases = list(full.cases())
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * (1 + 2)
    assert {case.verifier for _, case in cases if case.temperature == 0} == {"token"}


def test_a_pair_brings_its_number_of_draft_tokens():
    numbers = {p: {c.num_draft_tokens for _, c in config(pair=p).cases()} for p in ("small", "8b")}
    assert numbers == {"small": {4}, "8b": {5}}


def test_a_config_survives_json():
    full = config(num_draft_tokens=(2, "auto"), verifiers=("block",), threads=2)
    assert from_dict(SpecdecConfig, json.loads(json.dumps(to_dict(full)))) == full


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pair": "huge"}, "pair must be one of"),
        ({"target": "a"}, "target and draft go together"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"batch_sizes": (0,)}, "batch_sizes must satisfy"),
        ({"num_draft_tokens": (0,)}, "num_draft_tokens must satisfy"),
        ({"temperatures": (-1.0,)}, "temperatures must satisfy"),
        ({"verifiers": ("best",)}, "verifiers must be one of"),
        ({"dtypes": ("int8",)}, "dtypes must be one of"),
        ({"forward": ("fast",)}, "forward must be one of"),
        ({"repeats": 0}, "repeats must satisfy"),
        ({"threads": 0}, "threads must satisfy"),
        ({"damping": -0.1}, "damping must satisfy"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_sweep_measures_every_decoder_on_equal_work(finished):
    _, rows = finished
    assert [row["case"]["batch_size"] for row in rows] == [1, 2]
    for row in rows:
        assert list(row["methods"]) == [SPECULATIVE, PLAIN, PEER_PLAIN, PEER_ASSISTED]
        for name in (PLAIN, PEER_PLAIN):
            assert row["methods"][name]["block_efficiency"] == 1
        assert 1 <= row["methods"][SPECULATIVE]["block_efficiency"] <= 4
        assert all(len(m["seconds"]) == 2 for m in row["methods"].values())
        assert row["prediction"]["ceiling_tokens_per_second"] > 0


def test_a_sweep_writes_rows_table_and_picture(finished):
    folder, rows = finished
    assert read_jsonl(folder / "rows.jsonl") == rows
    results = read_json(folder / "results.json")
    assert results["rows"] == rows
    assert results["environment"]["num_threads"] == torch.get_num_threads()
    assert from_dict(SpecdecConfig, results["config"]).pair == "tiny"
    table = (folder / "table.md").read_text()
    assert "fp32, T=1, g=3, batch 2" in table
    assert "synthetic pair tiny" in table
    assert (folder / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_sweep_measures_nothing_again(finished, monkeypatch):
    folder, rows = finished
    monkeypatch.setattr(sweep, "measure_case", None)
    again = run_sweep(read_config(folder), folder, show_progress=False)
    assert again == rows


def test_an_interrupted_sweep_goes_on_behind_its_last_row(finished, tmp_path, monkeypatch):
    folder, rows = finished
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text(lines[0] + lines[1][:30])  # killed while writing
    measured = []
    monkeypatch.setattr(
        sweep, "measure_case", lambda case, *_, **__: measured.append(case) or strip(rows[1])
    )
    assert run_sweep(read_config(folder), tmp_path, show_progress=False) == rows
    assert [case.batch_size for case in measured] == [2]
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def read_config(folder):
    return from_dict(SpecdecConfig, read_json(folder / "config.json"))


def strip(row):
    return {key: value for key, value in row.items() if key not in ("case", "threads")}


def test_a_folder_of_another_sweep_is_refused_and_left_alone(finished):
    folder, _ = finished
    before = (folder / "config.json").read_bytes()
    with pytest.raises(RunConflictError, match="repeats"):
        run_sweep(config(repeats=3), folder, show_progress=False)
    assert (folder / "config.json").read_bytes() == before


def test_a_device_that_is_not_there_is_named_before_anything_is_written(tmp_path):
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match=f"device '{name}' cannot be used"):
            run_sweep(config(device=name), tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_models_from_folders_are_measured(tmp_path):
    for role, model in zip(("target", "draft"), synthetic_pair("tiny"), strict=True):
        model.save_pretrained(tmp_path / role)
    named = config(
        target=str(tmp_path / "target"),
        draft=str(tmp_path / "draft"),
        temperatures=(0.0,),
        num_draft_tokens=(2,),
        peers=False,
        repeats=1,
    )
    (row,) = run_sweep(named, tmp_path / "run", show_progress=False)
    assert list(row["methods"]) == [SPECULATIVE, PLAIN]
    assert row["num_rounds_as_plain"] == 1
    assert row["acceptance"]["acceptance_rate"] > 0.5


def test_a_model_that_is_not_there_is_named(tmp_path):
    missing = config(target=str(tmp_path / "no"), draft=str(tmp_path / "no"))
    with pytest.raises(ValueError, match="no model could be loaded"):
        run_sweep(missing, tmp_path / "run", show_progress=False)


def test_all_forwards_are_measured_in_one_run():
    pair = Pair(*synthetic_pair("tiny"), forwards=("packed",))
    case = Case(num_draft_tokens=2, max_new_tokens=6, prompt_tokens=4, repeats=1)
    row = measure_case(case, pair, peers=False)
    names = [SPECULATIVE, PLAIN, f"{SPECULATIVE}, packed", f"{PLAIN}, packed"]
    assert list(row["methods"]) == names
    assert "share_of_ceiling" in row["methods"][f"{SPECULATIVE}, packed"]


def test_decoders_of_one_pair_keep_their_own_settings():
    pair = Pair(*synthetic_pair("tiny", dtype=torch.float64))
    decoders = [pair.decoder(num_draft_tokens=num) for num in (0, 2)]
    params = Case(num_draft_tokens=1, max_new_tokens=8).params(0)
    drafted = [decode([[1, 2, 3]], params).stats.num_drafted for decode in decoders]
    assert drafted[0] == 0 < drafted[1]
    assert pair.forwards == ["eager"]


def test_an_unknown_forward_is_named():
    with pytest.raises(ValueError, match="forward must be one of 'eager'"):
        Pair(*synthetic_pair("tiny"), forwards=("fast",))


def test_a_decoder_that_does_less_work_is_not_compared(monkeypatch):
    case = Case(num_draft_tokens=2, max_new_tokens=6, prompt_tokens=4, repeats=1)
    lazy = {SPECULATIVE: lambda *_: Decoded([[1, 2]], 1)}
    monkeypatch.setattr(specdec, "decoders_of", lambda *_, **__: lazy)
    with pytest.raises(RuntimeError, match="selftrain generated 2 tokens where 6"):
        measure_case(case, Pair(*synthetic_pair("tiny")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_draft_tokens": 0}, "num_draft_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"batch_size": 0}, "batch_size"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_a_case_names_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Case(**{"num_draft_tokens": 2, **changes})


def test_a_goal_says_whether_it_is_met():
    assert Goal("speed", 1.5, 1.1).line() == "goal speed: 1.500 (wanted >= 1.1) met"
    assert Goal("errors", 2, 0, at_least=False).line().endswith("(wanted <= 0) short")


@pytest.mark.slow
def test_a_process_of_its_own_tells_its_peak_memory():
    small, large = (peak_memory(bytearray, size) for size in (1, 300 * 2**20))
    assert large - small > 250 * 2**20


@pytest.mark.slow
def test_memory_of_every_decoder_is_measured_where_asked(tmp_path):
    asked = config(temperatures=(0.0,), memory=True, repeats=1, peers=False)
    (row,) = run_sweep(asked, tmp_path, show_progress=False)
    assert all(method["peak_bytes"] > 50 * 2**20 for method in row["methods"].values())
    assert "Peak memory" in (tmp_path / "table.md").read_text()
