"""``selftrain vstar``: a generator, a verifier and a report, and the same again after a stop."""

import json

import pytest
from PIL import Image
from transformers import AutoModelForCausalLM

from selftrain import cli
from selftrain.cli import vstar
from selftrain.loops import Verifier, VSTaRConfig

QUICK = "--generator.num-rounds 1 --generator.num-samples 8 --num-validation 4 --num-candidates 8"
QUICK += " --generator.sampling.max-new-tokens 12 --generator.sampling.temperature 1.0"
QUICK += " --generator.evaluation.sampling.max-new-tokens 12"
QUICK += " --generator.improve.first-steps 16 --generator.improve.batch-size 8"
QUICK += " --generator.improve.optim.learning-rate 0.02 --generator.improve.evaluations 1"
QUICK += " --preference.num-steps 4"


@pytest.fixture(scope="module")
def finished(tiny_model, word_problems, tmp_path_factory):
    """A finished run: its folder and the words that made it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["--model", tiny_model, "--task", "gsm8k", "--dataset", word_problems]
    words = [str(word) for word in [*words, "--output-dir", folder, *QUICK.split()]]
    assert cli.main(["vstar", *words]) == 0
    return folder, words


def test_a_run_leaves_a_generator_and_a_verifier_with_cards(finished):
    folder, _ = finished
    AutoModelForCausalLM.from_pretrained(folder / "generator/rounds/000/model")
    verifier = Verifier.load(folder / "verifier/model")
    scores = verifier.score("Question: a?\nAnswer:\n", ["0\n#### 0", "1\n#### 1"])
    assert scores.shape == (2,)
    for part in ("generator/rounds/000/model", "verifier/model"):
        assert "V-STaR" in (folder / part / "README.md").read_text()
    assert "Verifier.load" in (folder / "verifier/model/README.md").read_text()


def test_the_report_compares_ways_to_choose_on_both_tasks(finished):
    folder, _ = finished
    report = (folder / "report.md").read_text()
    for way in ("pass@k, a perfect judge", "verifier, log_prob", "majority vote", "weighted vote"):
        assert report.count(f"| {way} |") == 2
    for name in ("accuracy", "train_and_test", "verifier-test", "verifier-validation"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > 400


def test_a_finished_run_says_so_and_is_only_read(finished, capsys):
    folder, words = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert cli.main(["vstar", *words]) == 0
    assert "it is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_a_command_killed_before_the_verifier_continues(finished, tmp_path, monkeypatch, capsys):
    folder, words = finished
    words = [str(tmp_path / "run") if word == str(folder) else word for word in words]

    def interrupt(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vstar.VSTaR, "train_verifier", interrupt)
        assert cli.main(["vstar", *words]) == 130
    assert cli.main(["vstar", *words]) == 0
    assert "1 of its rounds are over" in capsys.readouterr().out
    one, two = (
        json.loads((path / "verifier/report-test.json").read_text())
        for path in (folder, tmp_path / "run")
    )
    assert one == two


def test_every_preset_makes_a_configuration():
    assert {"paper_gsm8k", "one_round", "sft_verifier"} <= set(vstar.PRESETS)
    assert all(isinstance(getattr(VSTaRConfig, name)(), VSTaRConfig) for name in vstar.PRESETS)


def test_a_preset_is_a_start_that_other_options_override():
    words = ["--model", "m", "--task", "gsm8k", "--preset", "one_round", "--num-candidates", "7"]
    config = vstar._parse(words).config
    assert (config.generator.num_samples, config.num_candidates) == (48, 7)
    assert config.generator.sampling.stop == ("\nQuestion:",)


def test_rationalising_is_left_to_the_other_command(tiny_model, word_problems, tmp_path, capsys):
    words = ["--model", tiny_model, "--task", "gsm8k", "--dataset", word_problems]
    words += ["--output-dir", tmp_path / "run", "--generator.rationalize"]
    assert cli.main(["vstar", *map(str, words)]) == 2
    assert "selftrain restem --preset star" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
