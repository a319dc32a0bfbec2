"""The metrics log and the progress bar."""

import pytest

from selftrain._core.io import read_jsonl
from selftrain._core.logging import MetricLog, progress


def test_rows_that_a_killed_run_logged_ahead_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for stage in ("target", "draft"):
        log = MetricLog(path, stage=stage)
        for step in range(5):
            log.log(step, {"loss": float(step)})
    resumed = MetricLog(path, stage="draft", first_step=3)
    resumed.log(3, {"loss": 30.0})
    rows = read_jsonl(path)
    assert [r["step"] for r in rows if r["stage"] == "target"] == [0, 1, 2, 3, 4]
    assert [r["loss"] for r in rows if r["stage"] == "draft"] == [0.0, 1.0, 2.0, 30.0]


def test_a_torn_row_does_not_spoil_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricLog(path, stage="a").log(0, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"stage": "a", "st')
    MetricLog(path, stage="a", first_step=1).log(1, {"loss": 2.0})
    assert [r["step"] for r in read_jsonl(path)] == [0, 1]


def test_a_tracker_gets_every_row(tmp_path):
    seen = []

    class Recorder:
        def log(self, values, step=None):
            seen.append((step, values))

    MetricLog(tmp_path / "m.jsonl", stage="a", tracker=Recorder()).log(2, {"loss/total": 1.0})
    assert seen == [(2, {"a/loss/total": 1.0})]


def test_a_hidden_bar_prints_nothing(capsys):
    with progress("title", 3, show=False) as bar:
        bar.update(1, "note")
    assert capsys.readouterr().out == ""


def test_a_bar_shows_what_is_done(capsys):
    with progress("training the draft", 3, done=1) as bar:
        bar.update(3, "loss 1.0")
    out = capsys.readouterr().out
    assert "training the draft" in out
    assert "3/3" in out


def test_an_error_passes_through_a_bar():
    with pytest.raises(RuntimeError, match="x"), progress("t", 1, show=False):
        raise RuntimeError("x")
