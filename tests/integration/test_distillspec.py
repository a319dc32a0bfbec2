"""The whole run, small: it ends in a report, continues when killed, and refuses to be mixed up."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain.cli import main
from selftrain.decoding import SamplingParams, SpeculativeDecoder
from selftrain.distill import DistillConfig, Distiller, measure_draft
from selftrain.distill.pipeline import DistillSpecConfig, ModelShape, run
from selftrain.errors import RunConflictError
from selftrain.training import FinetuneConfig, OptimConfig

OPTIM = OptimConfig(learning_rate=5e-3)
TRAINING = FinetuneConfig(num_steps=6, batch_size=4, optim=OPTIM, save_every=1, log_every=2)
CONFIG = DistillSpecConfig(
    dataset="python-docs",
    vocab_size=300,
    target_shape=ModelShape(num_layers=2, width=32),
    draft_shape=ModelShape(num_layers=1, width=32),
    block_tokens=48,
    target_training=TRAINING,
    draft_training=TRAINING,
    distillation=DistillConfig(
        divergence="forward_kl",
        sampling=SamplingParams(max_new_tokens=12),
        num_steps=5,
        batch_size=4,
        optim=OPTIM,
        save_every=1,
        log_every=1,
    ),
    prompt_tokens=12,
    num_prompts=2,
    num_untimed_prompts=6,
    max_new_tokens=16,
)

# The same run in a process of its own, to be killed.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_distillspec import CONFIG
from selftrain.distill.pipeline import run
run(CONFIG, sys.argv[1], show_progress=False)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed run below: sums then round alike
    run(CONFIG, folder, show_progress=False)
    torch.set_num_threads(threads)
    return folder


def test_the_folder_holds_report_plots_numbers_and_models(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert names >= {
        "report.md",
        "report.html",
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "measurements.jsonl",
        "results.json",
        "plots/loss.png",
        "plots/acceptance.png",
        "plots/block_efficiency.png",
        "plots/speed.png",
        "plots/sample.png",
        "target/model.safetensors",
        "draft/model.safetensors",
    }
    assert not any("checkpoint" in name or ".part" in name for name in names)
    stages = {
        json.loads(line)["stage"] for line in (finished / "metrics.jsonl").read_text().splitlines()
    }
    assert stages == {"target", "draft_start", "undistilled", "supervised", "on_policy"}


def test_greedy_decoding_with_every_draft_was_identical_to_plain(finished):
    rows = json.loads((finished / "results.json").read_text())
    greedy = [row for row in rows if row["temperature"] == 0]
    assert [row["identical_to_plain"] for row in greedy] == [2] * 4


def test_the_draft_loads_in_transformers_and_assists(finished):
    target = AutoModelForCausalLM.from_pretrained(finished / "target")
    draft = AutoModelForCausalLM.from_pretrained(finished / "draft")
    tokenizer = AutoTokenizer.from_pretrained(finished / "draft")
    ids = tokenizer("The ", return_tensors="pt").input_ids
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
    plain = target.generate(ids, **options)
    assert torch.equal(target.generate(ids, assistant_model=draft, **options), plain)


def test_a_second_call_does_nothing_and_another_configuration_is_refused(finished):
    before = (finished / "report.html").stat().st_mtime_ns
    assert run(CONFIG, finished) == finished / "report.html"
    assert (finished / "report.html").stat().st_mtime_ns == before
    with pytest.raises(RunConflictError, match="prompt_tokens: 12 -> 13"):
        run(replace(CONFIG, prompt_tokens=13), finished)


def test_a_killed_run_continues_to_the_same_models(finished, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(Path(__file__).parent)]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    for stage in ("target", "on_policy"):
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 120
        while not list((folder / "training" / stage).glob("checkpoint-0000000[2-9]*")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    subprocess.run(command, env=environment, check=True, timeout=180)
    for model in ("target", "draft_undistilled", "draft_supervised", "draft"):
        name = f"{model}/model.safetensors"
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), model


def test_a_model_folder_without_weights_is_refused_before_any_work(finished, tmp_path, capsys):
    empty = tmp_path / "model"
    empty.mkdir()
    (empty / "config.json").write_text((finished / "target" / "config.json").read_text())
    arguments = ["distillspec", "--target", str(empty), "--output-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "could be loaded from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # so that the mended command is not refused


def test_an_unreadable_corpus_is_refused_in_one_sentence(tmp_path, capsys):
    missing = str(tmp_path / "nothing.txt")
    arguments = ["distillspec", "--dataset", missing, "--output-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert "nothing.txt" in error
    assert "Traceback" not in error


def test_own_models_with_padded_logits_and_chat_prompts_run_through(finished, tmp_path):
    """A named target of more logits than tokens, whose tokenizer has a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(finished / "target")
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    target = AutoModelForCausalLM.from_pretrained(finished / "target")
    target.resize_token_embeddings(len(tokenizer) + 8)
    for part in (target, tokenizer):
        part.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    config = replace(CONFIG, target=model, draft=str(finished / "draft"), prompts="chat")
    report = run(config, tmp_path / "run", show_progress=False)
    assert "measurements" in report.read_text()
    assert not (tmp_path / "run" / "target").exists()
    scratch = run(replace(CONFIG, target=model), tmp_path / "scratch", show_progress=False)
    assert scratch.exists()


def test_chat_prompts_need_a_template(tmp_path):
    with pytest.raises(ValueError, match="chat template"):
        run(replace(CONFIG, prompts="chat"), tmp_path / "run", show_progress=False)


def test_a_draft_without_its_target_is_refused():
    with pytest.raises(ValueError, match="needs the target"):
        DistillSpecConfig(draft="somewhere")


STORIES = Path(__file__).parents[3] / "shared/data/stories260K/hf"


@pytest.mark.shared_data
@pytest.mark.skipif(not STORIES.exists(), reason=f"the shared data folder is absent: {STORIES}")
def test_a_one_layer_draft_of_real_weights_learns_and_decodes_exactly(tmp_path):
    """stories260K, a pretrained Llama of five layers; its first layer is the draft's start."""
    target = AutoModelForCausalLM.from_pretrained(STORIES).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    shallow = type(target.config).from_pretrained(STORIES, num_hidden_layers=1)
    draft = type(target)(shallow)
    draft.load_state_dict(target.state_dict(), strict=False)
    words = ["Once", "One day", "The", "Lily", "Tom", "There", "She", "A big dog"]
    prompts = [tokenizer(f"{word} {more}").input_ids for word in words for more in ("was", "saw")]
    params = SamplingParams(max_new_tokens=48, seed=0)
    before = measure_draft(target, draft, prompts, num_draft_tokens=4, params=params)
    config = DistillConfig(
        divergence="forward_kl",
        sampling=SamplingParams(max_new_tokens=32),
        num_steps=60,
        batch_size=16,
        optim=OptimConfig(learning_rate=3e-3),
    )
    Distiller(draft, target, tokenizer, config).fit(
        [{"prompt_ids": p} for p in prompts], show_progress=False
    )
    after = measure_draft(target, draft, prompts, num_draft_tokens=4, params=params)
    assert after.block_efficiency > 1.3 * before.block_efficiency

    ids = torch.tensor([tokenizer("Once upon a time").input_ids])
    greedy = SamplingParams(max_new_tokens=100, temperature=0)
    got = SpeculativeDecoder(target.double(), draft.double()).generate(ids, params=greedy)
    want = target.generate(ids, max_new_tokens=100, do_sample=False, pad_token_id=0)
    assert torch.equal(got.sequences, want)
