import copy
import json
import math

import datasets
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import T5Config, T5ForConditionalGeneration

from selftrain.errors import RunConflictError
from selftrain.training import FinetuneConfig, OptimConfig, finetune

ROWS = [
    {"prompt_ids": [3, 4, 5], "completion_ids": [6, 7, 1]},
    {"prompt_ids": [8], "completion_ids": [9, 10, 11, 12, 1]},
    {"prompt_ids": [13, 14, 15, 16, 17], "completion_ids": [1]},
    {"prompt_ids": [18, 19], "completion_ids": [20, 21, 22]},
    {"prompt_ids": [23], "completion_ids": [24, 1]},
]
CONFIG = FinetuneConfig(
    num_steps=6, batch_size=5, log_every=1, save_every=1, optim=OptimConfig(learning_rate=1e-2)
)


def changed(**fields):
    return FinetuneConfig(**{f: getattr(CONFIG, f) for f in CONFIG.__slots__} | fields)


def run(model, rows, config=CONFIG, **kwargs):
    return finetune(model, rows, config, show_progress=False, **kwargs)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(model, rows, *, weights=None):
    """The weighted mean of -log q over completion tokens, one row at a time."""
    total = count = 0.0
    for row, weight in zip(rows, weights or [1.0] * len(rows), strict=True):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        start = len(row["prompt_ids"])
        logits = model(ids).logits[0, start - 1 : -1]
        total += weight * F.cross_entropy(logits, ids[0, start:], reduction="sum").item()
        count += weight * len(row["completion_ids"])
    return total / count


def test_loss_is_the_mean_over_completion_tokens(make_llama):
    model = make_llama()
    expected = by_hand(model, ROWS)
    report = run(model, ROWS)
    assert report.history[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert report.history[0]["num_scored_tokens"] == 14


def test_rows_weigh_as_their_weights_say(make_llama):
    model = make_llama()
    weights = [0.5, 2.0, 0.0, 1.0, 3.0]
    expected = by_hand(model, ROWS, weights=weights)
    rows = [{**row, "weight": w} for row, w in zip(ROWS, weights, strict=True)]
    assert run(model, rows).history[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_training_lowers_the_loss(make_llama):
    report = run(make_llama(), ROWS, changed(num_steps=40))
    assert report.metrics["loss"] < 0.2 * report.history[0]["loss"]


def test_masked_sequences_equal_prompts_with_completions(make_llama):
    a, b = make_llama(), make_llama()
    masked = [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "mask": [0] * len(row["prompt_ids"]) + [1] * len(row["completion_ids"]),
        }
        for row in ROWS
    ]
    run(a, ROWS)
    run(b, datasets.Dataset.from_list(masked))
    assert torch.equal(parameters(a), parameters(b))


def test_sequence_normalisation_averages_within_sequences_first(make_llama):
    model = make_llama()
    expected = sum(by_hand(model, [row]) for row in ROWS) / len(ROWS)
    report = run(model, ROWS, changed(normalize="sequence"))
    assert report.history[0]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalize", ["token", "sequence"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_uneven_micro_batches_equal_one_batch(make_llama, monkeypatch, normalize, micro_batch_size):
    gradients = []
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *_: gradients.append(
            torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]])
        ),
    )
    rows = [{**row, "weight": 1.0 + i} for i, row in enumerate(ROWS)]
    for size in (None, micro_batch_size):
        run(make_llama(), rows, changed(normalize=normalize, micro_batch_size=size, num_steps=1))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_an_interrupted_run_continues_to_the_same_bits(make_llama, tmp_path):
    class Interrupted(list):
        def __getitem__(self, index):
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 18:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    config = changed(micro_batch_size=2)
    whole, broken, resumed = (make_llama(attention_dropout=0.5) for _ in range(3))
    expected = run(whole, ROWS, config, output_dir=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(broken, Interrupted(ROWS), config, output_dir=tmp_path / "b")
    report = run(resumed, ROWS, config, output_dir=tmp_path / "b")
    assert torch.equal(parameters(whole), parameters(resumed))
    name = "checkpoint-00000006.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [r["loss"] for r in report.history] == [r["loss"] for r in expected.history]
    assert [r["step"] for r in report.history] == list(range(6))


def test_a_finished_run_is_reported_without_training_again(make_llama, tmp_path):
    first, second = make_llama(), make_llama()
    expected = run(first, ROWS, output_dir=tmp_path)
    report = run(second, ROWS, output_dir=tmp_path)
    assert report == expected
    assert torch.equal(parameters(first), parameters(second))


def test_a_folder_of_another_configuration_is_refused_with_the_difference(make_llama, tmp_path):
    run(make_llama(), ROWS, output_dir=tmp_path)
    with pytest.raises(RunConflictError, match=r"optim\.learning_rate: 0\.01 -> 0\.5"):
        run(make_llama(), ROWS, changed(optim=OptimConfig(learning_rate=0.5)), output_dir=tmp_path)


def test_metrics_and_evaluation_are_written_as_json_lines(make_llama, tmp_path):
    model = make_llama()
    report = run(model, ROWS, changed(eval_every=3), output_dir=tmp_path, eval_dataset=ROWS[:2])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/loss" in row] == [2, 5]
    assert report.metrics["eval/loss"] == pytest.approx(by_hand(model, ROWS[:2]), rel=1e-5)


def test_the_mode_of_the_model_is_restored(make_llama):
    model = make_llama().eval()
    run(model, ROWS)
    assert not model.training


def test_a_batch_with_nothing_scored_has_zero_loss_and_zero_gradient(make_llama):
    model = make_llama()
    before = parameters(model).clone()
    report = run(model, [{"input_ids": [3, 4], "mask": [1, 0]}])
    assert {(r["loss"], r["grad_norm"]) for r in report.history} == {(0.0, 0.0)}
    assert torch.equal(before, parameters(model))


def test_a_loss_that_is_not_finite_is_an_error_before_the_update(make_llama):
    model = make_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[24] = math.nan
    before = copy.deepcopy(model)
    with pytest.raises(FloatingPointError, match="step 0: the loss of row 4 is nan"):
        run(model, ROWS, changed(seed=1))
    a, b = parameters(before), parameters(model)
    assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_an_encoder_decoder_learns_from_prompts_and_completions():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=48, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    row = ROWS[1]
    labels = torch.tensor([row["completion_ids"]])
    expected = model.eval()(input_ids=torch.tensor([row["prompt_ids"]]), labels=labels).loss.item()
    report = run(model, [row], changed(num_steps=30))
    assert report.history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert report.metrics["loss"] < 0.5 * expected


def test_an_accelerator_that_accumulates_is_an_error(make_llama):
    accelerator = Accelerator(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="set micro_batch_size"):
        run(make_llama(), ROWS, accelerator=accelerator)


def test_an_empty_data_set_is_an_error(make_llama):
    with pytest.raises(ValueError, match="dataset is empty"):
        run(make_llama(), [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "it has text"),
        ({"input_ids": [3, 4], "mask": [1]}, "mask has 1 entries for 2 tokens"),
        ({"input_ids": [3, 4], "weight": -1.0}, "weight must satisfy"),
    ],
)
def test_malformed_rows_are_errors(make_llama, row, message):
    with pytest.raises(ValueError, match=message):
        run(make_llama(), [row])
