"""``selftrain bench``: its help, its errors, and one run."""

import json

import pytest

from selftrain import cli

QUICK = ["--quick", "--repeats", "1", "--max-new-tokens", "6", "--temperatures", "0"]


def test_help_lists_the_benchmarks(capsys):
    assert cli.main(["bench", "--help"]) == 0
    assert "specdec" in capsys.readouterr().out


def test_an_unknown_or_missing_benchmark_is_an_error_with_help(capsys):
    assert cli.main(["bench", "speed"]) == 2
    assert "there is no benchmark 'speed'" in capsys.readouterr().err
    assert cli.main(["bench"]) == 2
    assert "usage: selftrain bench" in capsys.readouterr().err


def test_help_of_specdec_shows_every_sweep(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", "specdec", "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for option in ("--target", "--batch-sizes", "--num-draft-tokens", "--verifiers", "--no-peers"):
        assert option in out


def test_a_run_prints_a_table_and_leaves_its_files(tmp_path, capsys):
    args = ["bench", "specdec", *QUICK, "--num-draft-tokens", "1", "2", "--no-peers"]
    assert cli.main([*args, "--output-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "greedy, g=1" in out
    assert "greedy, g=2" in out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["case"]["num_draft_tokens"] for row in rows] == [1, 2]


def test_bad_settings_are_one_message(capsys, tmp_path):
    args = ["bench", "specdec", "--output-dir", str(tmp_path / "run")]
    assert cli.main([*args, "--pair", "huge"]) == 2
    assert "pair must be one of 'tiny'" in capsys.readouterr().err
    assert cli.main([*args, "--target", "somewhere"]) == 2
    assert "target and draft go together" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
