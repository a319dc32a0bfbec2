"""``selftrain distill``: runs end to end, resumes, presets, and errors."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain import cli
from selftrain.cli.distill import PRESETS
from selftrain.distill import DistillConfig
from selftrain.distill.model_card import model_card
from selftrain.distill.row_files import load_rows

QUICK = ["--num-steps", "2", "--batch-size", "2", "--log-every", "1"]
QUICK += ["--sampling.max-new-tokens", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_llama, char_tokenizer):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        make_llama(seed=seed).save_pretrained(folder / name)
        char_tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": p, "completion": "ab", "weight": 1.0} for p in ("a", "b", "ab")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def run(folder, tmp_path):
    def run(*args):
        given = {"--student": folder / "student", "--teacher": folder / "teacher"}
        given |= {"--dataset": folder / "rows.jsonl", "--output-dir": tmp_path / "run"}
        words = [str(w) for pair in given.items() if pair[0] not in args for w in pair]
        return cli.main(["distill", *words, *QUICK, *map(str, args)])

    return run


def test_a_run_leaves_a_student_a_card_and_curves(run, folder, tmp_path, capsys):
    assert run("--eval-dataset", folder / "rows.jsonl") == 0
    student = tmp_path / "run" / "student"
    AutoModelForCausalLM.from_pretrained(student)
    AutoTokenizer.from_pretrained(student)
    card = (student / "README.md").read_text()
    assert card.startswith("---\n")
    assert "3 rows" in card
    assert "eval/acceptance" in card
    assert (tmp_path / "run" / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert "acceptance" in capsys.readouterr().out


def test_the_same_command_again_takes_no_step_and_changes_nothing(run, tmp_path, capsys):
    assert run() == 0
    weights = (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert run() == 0
    assert (tmp_path / "run" / "student" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log


def test_a_folder_is_not_continued_with_another_student_or_configuration(run, folder, capsys):
    assert run() == 0
    assert run("--student", folder / "teacher", "--teacher", folder / "student") == 2
    assert "student:" in capsys.readouterr().err
    assert run("--seed", 1) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def test_a_preset_is_a_start_that_other_options_override(run, tmp_path):
    assert run("--preset", "supervised_kd", "--divergence", "reverse_kl") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["divergence"] == "reverse_kl"
    assert config["on_policy_fraction"] == 0


def test_every_preset_makes_a_configuration():
    assert {"supervised_kd", "seq_kd", "on_policy_gkd"} <= set(PRESETS)
    assert all(isinstance(getattr(DistillConfig, name)(), DistillConfig) for name in PRESETS)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_are_saved_alone(run, tmp_path):
    assert run("--lora-rank", 2) == 0
    student = tmp_path / "run" / "student"
    assert (student / "adapter_config.json").exists()
    assert not (student / "model.safetensors").exists()
    assert "PeftModel.from_pretrained" in (student / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_without_a_teacher_the_base_of_the_adapters_teaches(folder, tmp_path):
    args = ["--student", str(folder / "student"), "--dataset", str(folder / "rows.jsonl")]
    args += ["--lora-rank", "2", "--output-dir", str(tmp_path)]
    assert cli.main(["distill", *args, *QUICK]) == 0
    first = json.loads((tmp_path / "metrics.jsonl").read_text().split("\n")[0])
    assert abs(first["loss"]) < 1e-6  # new adapters change nothing
    assert "its own base" in (tmp_path / "student" / "README.md").read_text()


def test_a_teacher_of_another_tokenizer_is_refused(run, folder, tmp_path, capsys):
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(folder / "teacher").save_pretrained(other)
    AutoTokenizer.from_pretrained(folder / "teacher").save_pretrained(other)
    data = json.loads((other / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(data))
    assert run("--teacher", other) == 2
    assert "tokenizers differ in 2 tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "rows.jsonl:2 is not JSON"),
        ('{"prompt": "a"}\n[1]\n', "rows.jsonl:2 must be a JSON object"),
        ('{"text": "a"}\n', "rows.jsonl:1 has no column 'prompt'; it has text"),
        ("", "dataset"),
    ],
)
def test_a_bad_file_is_told_with_its_line(run, tmp_path, capsys, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    assert run("--dataset", tmp_path / "rows.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_file_a_missing_model_and_no_teacher_are_one_message(folder, tmp_path, capsys):
    student = ["distill", "--student", str(folder / "student")]
    rows = ["--dataset", str(folder / "rows.jsonl"), "--output-dir", str(tmp_path / "run")]
    assert cli.main([*student, *rows]) == 2
    assert "--teacher" in capsys.readouterr().err
    teacher = ["--teacher", str(tmp_path / "nothing")]
    assert cli.main([*student, *rows, *teacher]) == 2
    assert "no model could be loaded" in capsys.readouterr().err
    assert cli.main([*student, *teacher, "--dataset", "missing.jsonl"]) == 2
    assert "no file or folder 'missing.jsonl'" in capsys.readouterr().err


def test_columns_are_renamed_and_may_change_places(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "x", "completion": "y"}))
    rows = load_rows(path, prompt_column="completion", completion_column="prompt")
    assert rows[0] == {"prompt": "y", "completion": "x"}
    with pytest.raises(ValueError, match="no column 'question'"):
        load_rows(path, prompt_column="question")


@pytest.mark.parametrize(("name", "named"), [("org/model", True), ("/tmp/model", False)])
def test_a_card_names_its_base_only_if_the_hub_knows_it(name, named):
    card = model_card(
        student=name,
        teacher="`org/big`",
        dataset="rows.jsonl",
        num_rows=7,
        config=DistillConfig.seq_kd(),
        metrics={"loss": 0.12345},
    )
    assert (f'base_model: "{name}"' in card) == named
    assert "| `loss` | 0.1235 |" in card
    assert "| `optim.learning_rate` | 0.0003 |" in card
    assert "100% from the teacher" in card
