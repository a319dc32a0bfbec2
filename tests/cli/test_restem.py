"""``selftrain restem``: runs end to end, continues what was killed, presets, and errors."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain import cli
from selftrain.cli import _scratch, restem
from selftrain.cli._tasks import TaskOptions, answer_hint, load_tasks
from selftrain.loops.config import ReSTEMConfig
from selftrain.tasks import modular_chains

DATA = Path(__file__).parents[3] / "shared/data"
QUICK = "--num-rounds 2 --num-samples 4 --patience None --solutions-first --num-validation 4"
QUICK += " --sampling.max-new-tokens 12 --evaluation.sampling.max-new-tokens 12"
QUICK += " --improve.first-steps 16 --improve.step-growth 1 --improve.batch-size 8"
QUICK += " --improve.optim.learning-rate 0.02 --improve.evaluations 1"


@pytest.fixture
def run(tiny_model, word_problems, tmp_path):
    def run(*args, folder="run", quick=QUICK):
        given = {"--model": tiny_model, "--task": "gsm8k", "--dataset": word_problems}
        given |= {"--output-dir": tmp_path / folder}
        words = [str(w) for pair in given.items() if pair[0] not in args for w in pair]
        return cli.main(["restem", *words, *quick.split(), *map(str, args)])

    return run


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tiny_model, word_problems, tmp_path_factory):
    """A finished run with several samples an evaluation: its folder and the words that made it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["--model", tiny_model, "--task", "gsm8k", "--dataset", word_problems]
    words += ["--output-dir", folder, *QUICK.split(), "--evaluation.num-samples", 4]
    words = list(map(str, words))
    assert cli.main(["restem", *words]) == 0
    return folder, words


def test_a_run_leaves_models_that_load_with_a_card(finished):
    folder, _ = finished
    model = folder / "rounds/001/model"
    AutoModelForCausalLM.from_pretrained(model)
    AutoTokenizer.from_pretrained(model)
    best = json.loads((folder / "summary.json").read_text())["best"]
    best = folder / ("start" if best == -1 else f"rounds/{best:03d}") / "model"
    card = (best / "README.md").read_text()
    assert card.startswith("---\n")
    assert "ReST-EM" in card
    assert "| test | pass@1 |" in card


def test_a_run_leaves_a_report_with_every_round_and_pictures(finished):
    folder, _ = finished
    report = (folder / "report.md").read_text()
    assert "| start | – |" in report
    assert "| 1 | 48 |" in report  # 12 problems, 4 samples each
    assert "pass@4" in report
    assert "Maj@4" in report
    for name in ("accuracy", "train_and_test"):
        assert f"{name}.png" in report
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 400
    assert (folder / "report.html").read_text().count("data:image/png;base64") == 2


def test_a_finished_run_says_so_and_trains_nothing(finished, capsys):
    folder, words = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert cli.main(["restem", *words]) == 0
    out = capsys.readouterr().out
    assert "it is finished" in out
    assert out.count("\nstart ") <= 1
    assert "Report:" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_a_line_is_shown_for_the_start_and_every_round(finished, capsys):
    _, words = finished
    assert cli.main(["restem", *words]) == 0
    firsts = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    begin = firsts.index("round")
    assert firsts[begin : begin + 4] == ["round", "start", "0", "1"]


def test_a_killed_command_continues_to_the_same_weights(finished, tmp_path, monkeypatch, capsys):
    folder, words = finished
    words = [str(tmp_path / "run") if word == str(folder) else word for word in words]

    def interrupt(self, round):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restem.RoundPrinter, "on_round", interrupt)
        assert cli.main(["restem", *words]) == 130
    assert not (tmp_path / "run/summary.json").exists()
    assert cli.main(["restem", *words]) == 0
    assert "Continuing the run" in capsys.readouterr().out
    one, two = (weights(path / "rounds/001/model") for path in (folder, tmp_path / "run"))
    assert all(one[name].equal(two[name]) for name in one)


def test_a_folder_is_not_continued_with_other_problems_or_settings(finished, capsys):
    _, words = finished
    assert cli.main(["restem", *words, "--max-train", "5"]) == 2
    assert "problems.max_train: None -> 5" in capsys.readouterr().err
    assert cli.main(["restem", *words, "--cap", "2"]) == 2
    assert "config.cap: 10 -> 2" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_trained_and_saved_alone(run, tmp_path):
    assert run("--lora-rank", 2, "--num-rounds", 1, "--improve.first-steps", 60) == 0
    model = tmp_path / "run/rounds/000/model"
    assert (model / "adapter_config.json").exists()
    assert not (model / "model.safetensors").exists()


def test_no_right_sample_is_a_sentence_and_still_a_report(run, tmp_path, capsys):
    assert run("--no-solutions-first") == 0
    assert "no sample of round 0 was good enough" in capsys.readouterr().out
    assert (tmp_path / "run/report.html").exists()


def test_a_model_from_scratch_begins_with_the_worked_problems(tmp_path, capsys, monkeypatch):
    sizes = dataclasses.replace(_scratch._SIZES["countdown"], worked_steps=2)
    monkeypatch.setitem(_scratch._SIZES, "countdown", sizes)
    words = "--model scratch --task countdown --max-train 6 --num-validation 3 --max-test 3"
    words += " --num-rounds 1 --num-samples 2 --evaluation.num-samples 0 --improve.first-steps 1"
    assert cli.main(["restem", *words.split(), "--output-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "start" in out
    AutoModelForCausalLM.from_pretrained(tmp_path / "run/base")


def test_every_preset_makes_a_configuration():
    assert {"paper_math", "paper_apps", "star", "rft", "rest"} <= set(restem.PRESETS)
    assert all(isinstance(getattr(ReSTEMConfig, name)(), ReSTEMConfig) for name in restem.PRESETS)


def test_a_preset_is_a_start_that_other_options_override():
    words = ["--model", "m", "--task", "gsm8k", "--preset", "paper_apps", "--cap", "3"]
    config = restem._parse(words).config
    assert (config.num_samples, config.num_rounds, config.cap) == (64, 2, 3)


def test_completions_end_where_a_base_model_begins_a_problem_of_its_own():
    config = restem._parse(["--model", "m", "--task", "math"]).config
    assert config.sampling.stop == config.evaluation.sampling.stop == ("\nProblem:",)


def test_validation_is_taken_out_of_the_training_problems(word_problems):
    options = TaskOptions(task="gsm8k", dataset=str(word_problems), num_validation=5, num_shots=2)
    tasks = load_tasks(options)
    assert (len(tasks.train), len(tasks.validation), len(tasks.test)) == (9, 5, 4)
    assert tasks.train.prefix == tasks.validation.prefix == tasks.test.prefix != ""
    parts = [{p.id for p in t.problems} for t in (tasks.train, tasks.validation, tasks.test)]
    assert len(set.union(*parts)) == 18


def test_of_a_single_file_test_problems_are_set_aside_where_wanted(word_problems):
    file = str(word_problems / "train.jsonl")
    assert load_tasks(TaskOptions(task="gsm8k", dataset=file, num_validation=4)).test is None
    options = TaskOptions(task="gsm8k", dataset=file, num_validation=4, max_test=3)
    tasks = load_tasks(options)
    assert (len(tasks.train), len(tasks.test)) == (9, 3)
    other = str(word_problems / "test.jsonl")
    options = TaskOptions(task="gsm8k", dataset=file, test_dataset=other, num_validation=4)
    assert len(load_tasks(options).test) == 4


def test_the_hint_gives_the_answer_away_right_before_the_problem(word_problems):
    options = TaskOptions(task="gsm8k", dataset=str(word_problems), num_validation=4, num_shots=1)
    task = load_tasks(options).train
    prompt = answer_hint(task)(task.problems[0])
    assert prompt.startswith(task.prefix)
    assert prompt.endswith(task.problems[0].prompt)
    assert f"Hint: the answer is {task.problems[0].answer}.\n" in prompt


def test_a_hint_without_an_answer_is_refused():
    task = modular_chains(num_sft=9, num_train=2, num_validation=1, num_test=1).train
    answer_hint(task)
    bare = tuple(dataclasses.replace(p, answer=None) for p in task.problems)
    with pytest.raises(ValueError, match="--no-rationalize"):
        answer_hint(dataclasses.replace(task, problems=bare))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-validation", 16], "num_validation is 16, and 16 problems are all there are"),
        (["--num-validation", 0], "num_validation"),
        (["--num-shots", 99], "num_shots is 99"),
        (["--dataset", "missing.jsonl"], "there is no file or folder missing.jsonl"),
        (["--model", "scratch"], "cannot learn gsm8k"),
        (["--model", "no/such/model"], "could be loaded from 'no/such/model'"),
        (["--lora-rank", 0], "lora_rank"),
        (["--sampler", "http://localhost:1/v1"], "--sampler and --sampler-model go together"),
        (
            ["--sampler", "http://localhost:1/v1", "--sampler-model", "m"],
            "--sampler needs --lora-rank",
        ),
        (["--sampling.temperature", 0], "num_samples=4 at temperature 0"),
        (["--task", "modchain"], "--dataset and --test-dataset do not go with --task modchain"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(run, tmp_path, capsys, args, message):
    assert run(*args) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_or_preset_is_refused_with_the_choices(run, capsys):
    for words in (["--task", "gsm9k"], ["--preset", "starr"]):
        with pytest.raises(SystemExit):
            run(*words)
        err = capsys.readouterr()
        assert "gsm8k" in err.err + err.out or "star_dagger" in err.err + err.out


@pytest.mark.slow
def test_two_processes_do_the_run_of_one(tiny_model, word_problems, tmp_path):
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    environment["ACCELERATE_USE_CPU"] = "true"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node", "2"]
    outputs = []
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        words = ["restem", "--model", tiny_model, "--task", "gsm8k", "--dataset", word_problems]
        words += ["--output-dir", tmp_path / name, *QUICK.split(), "--chunk-size", 2]
        worker = Path(__file__).with_name("command_worker.py")
        command = [str(word) for word in (*launcher, worker, *words)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stdout)
    written = (tmp_path / "two").glob("rounds/000/samples/samples-*")
    assert {int(path.name.split("-")[1]) for path in written} == {0, 1}
    assert all(text.count("Report:") == 1 for text in outputs)
    rows = [(tmp_path / name / "rounds/000/train.jsonl").read_bytes() for name in ("one", "two")]
    assert rows[0] == rows[1]


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.exists(), reason=f"the shared data folder is absent: {DATA}")
def test_gsm8k_runs_with_a_small_pretrained_model_and_is_honest_about_it(tmp_path, capsys):
    words = ["--model", DATA / "stories260K/hf", "--task", "gsm8k", "--dataset", DATA / "gsm8k"]
    words += ["--max-train", "6", "--num-validation", "4", "--max-test", "4", "--num-shots", "1"]
    words += [
        "--num-rounds",
        "1",
        "--num-samples",
        "2",
        "--sampling.max-new-tokens",
        "24",
        "--cap",
        "2",
    ]
    words += ["--with-solutions", "--solutions-first", "--improve.num-epochs", "1"]
    words += ["--evaluation.sampling.max-new-tokens", "24", "--improve.batch-size", "2"]
    words += ["--output-dir", tmp_path / "run"]
    assert cli.main(["restem", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "no sample of round 0 was good enough" in out or "rounds are done" in out
    report = (tmp_path / "run/report.md").read_text()
    assert "6 training, 4 validation, 4 test problems" in report
