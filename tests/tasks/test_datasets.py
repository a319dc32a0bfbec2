"""Loaders of word problems, on a few rows of our own."""

import gzip
import json

import datasets
import pytest

from selftrain.tasks import (
    ExactGrader,
    NumericGrader,
    as_chat,
    check_disjoint,
    choose_shots,
    few_shot_prefix,
    load_gsm8k,
    load_math,
    load_svamp,
)

GSM8K = [
    {
        "question": "Ada has 3 pens and buys 4 boxes of 250. How many pens has she?",
        "answer": "She buys 4*250 = <<4*250=1000>>1000 pens.\nThat makes <<3+1000=1003>>1003.\n"
        "#### 1,003",
    },
    {"question": "What is half of 9?", "answer": "9/2 = <<9/2=4.5>>4.5\n#### 4.5"},
    {"question": "What is 7 - 9?", "answer": "7 - 9 = -2\n#### -2"},
]
MATH = [
    {"problem": "Halve $1$.", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 2"},
    {
        "problem": "Double $x$.",
        "solution": r"It is $\boxed{2x}$.",
        "answer": "2x",
        "level": 5,
        "subject": "Algebra",
        "unique_id": "test/algebra/1.json",
    },
]
SVAMP = [
    {
        "ID": "chal-1",
        "Body": "Tom had 9 nuts. He ate 4 of them",
        "Question": "How many are left?",
        "Equation": "( 9.0 - 4.0 )",
        "Answer": 5.0,
        "Type": "Subtraction",
    }
]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train.jsonl", GSM8K[:2])
    write(tmp_path / "test.jsonl", GSM8K[2:])
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_file_of_any_kind_gives_the_same_problems(tmp_path, name):
    task = load_gsm8k(write(tmp_path / name, GSM8K))
    assert [problem.id for problem in task.problems] == ["gsm8k/a/0", "gsm8k/a/1", "gsm8k/a/2"]
    assert [problem.answer for problem in task.problems] == ["1,003", "4.5", "-2"]


def test_gsm8k_solutions_lose_the_calculator_marks_unless_they_are_kept(tmp_path):
    path = write(tmp_path / "train.jsonl", GSM8K)
    (first, *_), kept = load_gsm8k(path).problems, load_gsm8k(path, strip_annotations=False)
    assert first.prompt == f"Question: {GSM8K[0]['question']}\nAnswer:\n"
    assert first.solution == "She buys 4*250 = 1000 pens.\nThat makes 1003.\n#### 1,003"
    assert first.meta == {"num_steps": 2}
    assert kept.problems[0].solution == GSM8K[0]["answer"]


@pytest.mark.parametrize(
    ("load", "rows", "name"),
    [(load_gsm8k, GSM8K, "a.jsonl"), (load_math, MATH, "b.json"), (load_svamp, SVAMP, "c.json")],
)
def test_a_solution_is_graded_correct_by_its_own_task(tmp_path, load, rows, name):
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    task = load(write(tmp_path / name, rows))
    grades = task.grader.grade(task.problems, [p.solution for p in task.problems])
    assert [grade.score for grade in grades] == [1.0] * len(rows)
    wrong = task.grader.grade(task.problems, ["#### 12345"] * len(rows))
    assert [grade.score for grade in wrong] == [0.0] * len(rows)
    assert task.final_answer(task.problems[0], task.problems[0].solution) is not None


def test_gsm8k_takes_an_answer_with_a_unit(tmp_path):
    task = load_gsm8k(write(tmp_path / "a.jsonl", GSM8K))
    texts = ["#### $1,003 pens", "The answer is 4 1/2.", r"\boxed{-2.0}"]
    assert [grade.score for grade in task.grader.grade(task.problems, texts)] == [1.0] * 3


def test_math_answers_come_from_the_box_where_there_is_no_column(tmp_path):
    task = load_math(write(tmp_path / "m.json", MATH), grader=ExactGrader())
    first, second = task.problems
    assert (first.answer, second.answer) == (r"\frac{1}{2}", "2x")
    assert first.meta == {"level": 2, "subject": None}
    assert second.meta == {"level": 5, "subject": "Algebra"}
    assert (first.id, second.id) == ("math/m/0", "math/test/algebra/1.json")


def test_svamp_problems_get_a_solution_from_their_equation(tmp_path):
    (problem,) = load_svamp(write(tmp_path / "s.json", SVAMP)).problems
    asked = "Tom had 9 nuts. He ate 4 of them. How many are left?"
    assert problem.prompt == f"Question: {asked}\nAnswer:\n"
    assert problem.solution == "9 - 4 = 5\n#### 5"
    assert problem.id == "svamp/chal-1"


def test_a_folder_has_splits_and_a_test_split_does_not_overlap_the_train_split(folder):
    train, test = load_gsm8k(folder), load_gsm8k(folder, split="test")
    assert (len(train), len(test)) == (2, 1)
    check_disjoint(train, test)
    with pytest.raises(ValueError, match="is also in"):
        check_disjoint(train, load_gsm8k(folder))


def test_parts_of_a_split_are_read_in_order(tmp_path):
    for i in (1, 0):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", [GSM8K[i]])
    assert [p.answer for p in load_gsm8k(tmp_path).problems] == ["1,003", "4.5"]


def test_shots_come_from_the_train_split_and_are_not_asked_themselves(folder):
    test = load_gsm8k(folder, split="test", num_shots=2)
    assert test.prefix.count("Question:") == test.prefix.count("####") == 2
    assert test.prompt(test.problems[0]).endswith("Question: What is 7 - 9?\nAnswer:\n")
    train = load_gsm8k(folder, num_shots=1)
    assert len(train) == 1
    assert train.problems[0].prompt not in train.prefix
    one, two = (choose_shots(load_gsm8k(folder).problems, num_shots=n) for n in (1, 2))
    assert two[:1] == one


def test_a_prefix_may_be_given(folder):
    shots = few_shot_prefix(load_gsm8k(folder).problems[:1])
    assert load_gsm8k(folder, split="test", prefix=shots).prefix == shots


def test_a_larger_choice_of_problems_contains_a_smaller_one(tmp_path):
    path = write(tmp_path / "a.jsonl", GSM8K)
    one, two = (load_gsm8k(path, max_problems=n).problems for n in (1, 2))
    assert (len(one), len(two)) == (1, 2)
    assert {p.id for p in one} < {p.id for p in two}


def test_template_and_grader_may_be_given(tmp_path):
    grader = NumericGrader(rtol=0.1)
    task = load_gsm8k(write(tmp_path / "a.jsonl", GSM8K), template="{question} =", grader=grader)
    assert task.problems[1].prompt == "What is half of 9? ="
    assert task.grader is grader
    with pytest.raises(ValueError, match=r"template must hold \{question\}"):
        load_gsm8k(tmp_path / "a.jsonl", template="Q:")


def test_chat_messages_hold_prefix_and_prompt(folder):
    task = as_chat(load_gsm8k(folder, split="test", num_shots=1), system="Be brief.")
    system, user = task.prompt(task.problems[0])
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].count("Question:") == 2
    assert task.prefix == ""
    with pytest.raises(ValueError, match="chat messages"):
        as_chat(task)
    with pytest.raises(ValueError, match="cannot be a worked example"):
        few_shot_prefix(task.problems)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"question": "q"}], "row a/0 has no field 'answer'; it has question"),
        ([{"question": "q", "answer": None}], "'answer' must be text, got None"),
        ([{"question": "q", "answer": "no number"}], "does not end in a line like '#### 72'"),
        ([{"question": "q", "answer": "1\n####  "}], "does not end in a line like '#### 72'"),
        ([{"question": " ", "answer": "#### 1"}], "'question' must be text"),
    ],
)
def test_bad_gsm8k_rows_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_gsm8k(write(tmp_path / "a.jsonl", rows))


def test_rows_of_math_and_svamp_without_answer_and_repeated_ids_are_named(tmp_path):
    with pytest.raises(ValueError, match="row a/0 has no answer"):
        load_math(write(tmp_path / "a.json", [{"problem": "p", "solution": "none"}]))
    with pytest.raises(ValueError, match="row a/0 has no answer"):
        load_svamp(write(tmp_path / "a.json", [{**SVAMP[0], "Answer": None}]))
    with pytest.raises(ValueError, match="'svamp/chal-1' occurs twice"):
        load_svamp(write(tmp_path / "a.json", SVAMP * 2))


def test_bad_sources_are_named(tmp_path, folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_gsm8k(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="no file for the split 'validation'"):
        load_gsm8k(folder, split="validation")
    with pytest.raises(ValueError, match="must end in"):
        load_gsm8k(write(tmp_path / "rows.csv", GSM8K))
    with pytest.raises(ValueError, match=r"split is 'test', but .* is a file"):
        load_gsm8k(folder / "train.jsonl", split="test")
    with pytest.raises(ValueError, match="file without a train split"):
        load_gsm8k(folder / "test.jsonl", num_shots=1)
    with pytest.raises(ValueError, match="only 2 problems"):
        load_gsm8k(folder, split="test", num_shots=3)
    with pytest.raises(ValueError, match="exclude each other"):
        load_gsm8k(folder, split="test", num_shots=1, prefix="x")
    (tmp_path / "bad.jsonl").write_text('{"question": 1}\n[1]\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2 must be a JSON object"):
        load_gsm8k(tmp_path / "bad.jsonl")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a JSON list"):
        load_gsm8k(tmp_path / "bad.json")
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:1 is not JSON"):
        load_gsm8k(tmp_path / "bad.jsonl")


def test_the_hub_is_asked_for_name_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        rows = MATH if "math" in name else GSM8K
        return datasets.Dataset.from_list([row for row in rows if "unique_id" not in row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_gsm8k()) == 3
    load_gsm8k("somebody/gsm8k", split="test")
    assert asked == [("openai/gsm8k", "main", "train"), ("somebody/gsm8k", None, "test")]
    asked.clear()
    assert len(load_math(grader=ExactGrader())) == 7  # one row for each subject
    assert {(name, split) for name, _, split in asked} == {("EleutherAI/hendrycks_math", "train")}
    assert len({config for _, config, _ in asked}) == 7


def test_a_hub_name_that_cannot_be_loaded_is_told_with_the_cause(monkeypatch):
    def load_dataset(name, config, *, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="'main', split 'train': ConnectionError: no network"):
        load_gsm8k()
