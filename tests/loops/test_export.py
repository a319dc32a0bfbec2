"""An exported data set holds the samples exactly, says what it is, and is whole or absent."""

import json
import re

import datasets
import pyarrow.parquet
import pytest
import yaml

from selftrain.loops import export
from selftrain.loops.exchange import export_prompts, import_completions
from selftrain.loops.export import export_samples, load_samples, samples_dataset
from selftrain.loops.sample import Sample, sample_seed
from selftrain.loops.store import SampleStore
from selftrain.tasks.base import Grade, Problem, Task

FORMATS = ["parquet", "arrow", "jsonl"]


class NoGrader:
    def grade(self, problems, texts):
        raise AssertionError("nothing is judged here")


def task(prefix="Q: ", messages=False) -> Task:
    prompts = [[{"role": "user", "content": c}] if messages else c for c in ("1+1", "2+2")]
    problems = [
        Problem(id=i, prompt=p, answer=a) for i, p, a in zip("ab", prompts, "24", strict=True)
    ]
    return Task("sums", tuple(problems), NoGrader(), prefix="" if messages else prefix)


def samples() -> list[Sample]:
    grades = [
        Grade(1.0, "correct", level="L1", milliseconds=0.1),
        Grade(0.0, "wrong", detail="3"),
        Grade(None, "ungradable"),
        None,
    ]
    return [
        Sample(
            round=0,
            problem_id=problem_id,
            index=i,
            seed=2**63 - 1 - i,
            text=f"é \u2028 {i}\n",
            token_ids=None if i == 3 else (5, 70000 + i),
            finish_reason="length" if i == 2 else "stop",
            log_prob=None if i == 3 else -1 / 3 - i,
            policy="abc",
            sampling="def",
            grade=grades[i],
        )
        for problem_id in "ab"
        for i in range(4)
    ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("problems", [None, task(), task(messages=True)])
def test_samples_come_back_exactly(tmp_path, format, problems):
    folder = export_samples(samples(), tmp_path / "out", format=format, problems=problems)
    assert load_samples(folder) == samples()


def test_columns_have_their_types_whatever_the_first_rows_hold():
    table = samples_dataset([])
    assert table.features["token_ids"] == datasets.List(datasets.Value("int64"))
    assert table.features == samples_dataset(samples()).features


def test_prompts_and_answers_are_those_that_the_model_read():
    table = samples_dataset(samples(), task())
    assert table[0]["prompt"] == "Q: 1+1"
    assert table[4]["prompt"] == "Q: 2+2"
    assert table["answer"][:] == ["2"] * 4 + ["4"] * 4
    chat = samples_dataset(samples(), task(messages=True))
    assert chat[4]["prompt"] == [{"role": "user", "content": "2+2"}]


def test_a_published_folder_is_read_by_datasets_as_the_card_says(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = export_samples(samples(), tmp_path / "out", problems=task())
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["text"][:] == [s.text for s in samples()]
    assert rows["score"][:] == [s.score for s in samples()]


def test_the_card_counts_what_is_there(tmp_path):
    folder = export_samples(samples(), tmp_path / "out", problems=task())
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["configs"] == [{"config_name": "default", "data_files": "samples.parquet"}]
    # Two problems of four: 1, 0, not judged (cut off), not judged.
    assert "| 0 | 2 | 8 | 4 | 0.500 | 1.000 | 0.250 | 2.0 |" in card
    assert "| `abc` | `def` | 8 |" in card
    assert "## Licence" in card
    digest = json.loads((folder / "export.json").read_text())["digest"]
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert digest in card


def test_no_card_on_request(tmp_path):
    assert not (export_samples(samples(), tmp_path / "out", card=False) / "README.md").exists()


def test_the_digest_does_not_depend_on_the_order():
    assert export.samples_digest(samples()) == export.samples_digest(samples()[::-1])
    assert export.samples_digest(samples()) != export.samples_digest(samples()[1:])


def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    export_samples(samples(), tmp_path / "out")
    export_samples(samples()[:1], tmp_path / "out", format="jsonl")
    assert load_samples(tmp_path / "out") == samples()[:1]
    assert not (tmp_path / "out" / "samples.parquet").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="name a new one"):
        export_samples(samples(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_export_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    export_samples(samples()[:1], tmp_path / "out")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", fail)
    with pytest.raises(OSError, match="make room"):
        export_samples(samples(), tmp_path / "out")
    assert load_samples(tmp_path / "out") == samples()[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_changed_samples_are_found_out_unless_the_file_is_named(tmp_path):
    folder = export_samples(samples(), tmp_path / "out", format="jsonl")
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace('"wrong"', '"right"'))
    with pytest.raises(ValueError, match="digest differs"):
        load_samples(folder)
    assert {s.grade.status for s in load_samples(path) if s.grade} >= {"right"}


def test_a_single_parquet_file_is_read_too(tmp_path):
    path = export_samples(samples(), tmp_path / "out") / "samples.parquet"
    assert load_samples(path) == samples()
    assert pyarrow.parquet.read_table(path).num_rows == 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: export_samples([], p), ValueError, "samples is empty"),
        (lambda p: export_samples(samples(), p, format="csv"), ValueError, "format must be one of"),
        (lambda p: load_samples(p / "none"), FileNotFoundError, "no file or folder"),
        (lambda p: load_samples(p), ValueError, "no folder that export_samples wrote"),
        (
            lambda p: samples_dataset(samples(), Task("x", task().problems[:1], NoGrader())),
            ValueError,
            "the task 'x' has no problem 'b'",
        ),
        (
            lambda p: samples_dataset(
                samples(),
                Task("x", (task().problems[0], task(messages=True).problems[1]), NoGrader()),
            ),
            ValueError,
            "some prompts are text and some chat messages",
        ),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_prompts_leave_with_the_seeds_of_the_loops_and_come_back_as_samples(tmp_path):
    export_prompts(task(), tmp_path / "prompts.jsonl", num_samples=3, seed=7, round=2)
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [(r["problem_id"], r["index"]) for r in rows] == [(p, i) for p in "ab" for i in range(3)]
    assert rows[4]["prompt"] == "Q: 2+2"
    assert rows[4]["seed"] == sample_seed(7, 2, "b", 1)
    done = [r | {"text": f"= {r['index']}", "finish_reason": "stop"} for r in rows[::-1]]
    (tmp_path / "done.jsonl").write_text("".join(json.dumps(r) + "\n" for r in done))
    back = import_completions(
        tmp_path / "done.jsonl", policy="theirs", sampling="T=1", task=task(), round=2
    )
    assert [s.key for s in back] == [(2, p, i) for p in "ab" for i in range(3)]
    assert [s.seed for s in back] == [r["seed"] for r in rows]
    with SampleStore(tmp_path / "store") as store:
        store.append("imported", back)
        assert store.load() == back


def test_completions_without_an_index_are_counted(tmp_path):
    rows = [{"problem_id": p, "text": t} for p, t in ("ax", "bx", "ay")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = import_completions(tmp_path / "x.jsonl", policy="p", sampling="s", finish_reason="stop")
    assert [(s.key[1:], s.text) for s in found] == [
        (("a", 0), "x"),
        (("a", 1), "y"),
        (("b", 0), "x"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "finish_reason": "stop"}, "row 2 has no 'problem_id'"),
        ({"problem_id": "a", "finish_reason": "stop"}, "row 2 has no 'text'"),
        ({"problem_id": "a", "text": "x"}, "row 2 has no 'finish_reason'; write it"),
        ({"problem_id": "a", "text": "x", "finish_reason": "abort"}, "row 2: finish_reason must"),
        ({"problem_id": "z", "text": "x", "finish_reason": "stop"}, "has no problem 'z'"),
        ({"problem_id": "a", "text": "", "index": 0, "finish_reason": "stop"}, "has index 0 twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    good = {"problem_id": "a", "text": "x", "finish_reason": "stop"}
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, row)))
    with pytest.raises(ValueError, match=message):
        import_completions(path, policy="p", sampling="s", task=task())


def test_a_file_of_completions_that_was_cut_off_is_an_error(tmp_path):
    row = json.dumps({"problem_id": "a", "text": "x", "finish_reason": "stop"})
    (tmp_path / "x.jsonl").write_text(f"{row}\n{row[:20]}")
    with pytest.raises(ValueError, match=r"x.jsonl:2 is not JSON"):
        import_completions(tmp_path / "x.jsonl", policy="p", sampling="s")


def test_a_file_of_completions_that_is_not_there_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        import_completions(tmp_path / "x.jsonl", policy="p", sampling="s")
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"x.jsonl is empty"):
        import_completions(tmp_path / "x.jsonl", policy="p", sampling="s")
