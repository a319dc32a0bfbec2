"""Log-probabilities of completions: against a plain forward, whatever is batched with what."""

import random

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from selftrain.decoding.cache import prompts_obstacle
from selftrain.training import TokenRow, sequence_log_probs
from selftrain.training import row_scores as scoring

PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"  # asked by PEFT
PROMPTS = [(5, 9, 11), (7, 8), (12,), (20, 21, 22, 23, 24, 25)]


def rows_of(num=12, vocab=40, seed=0):
    draw = random.Random(seed)
    return [
        TokenRow(
            prompt_ids=PROMPTS[draw.randrange(len(PROMPTS))],
            completion_ids=tuple(draw.randrange(3, vocab) for _ in range(draw.randint(1, 7))),
        )
        for _ in range(num)
    ]


@torch.no_grad()
def by_hand(model, row):
    """One row, no batch, no padding, float64 log-softmax."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    log_q = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    first = len(row.prompt_ids)
    mask = row.mask or (True,) * len(row.completion_ids)
    return sum(
        log_q[first + i - 1, token].item()
        for i, token in enumerate(row.completion_ids)
        if mask[i] and first + i > 0
    )


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba", "bloom"])
def test_every_row_is_scored_as_if_alone(make_model, name, max_tokens):
    model, rows = make_model(name), rows_of()
    found = sequence_log_probs(model, rows, max_tokens=max_tokens)
    expected = torch.tensor([by_hand(model, row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_the_order_of_rows_moves_their_scores_with_them(make_llama):
    model, rows = make_llama(), rows_of()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    found = sequence_log_probs(model, rows)
    moved = sequence_log_probs(model, [rows[i] for i in order])
    torch.testing.assert_close(moved, found[order], rtol=0, atol=1e-5)


def test_masked_tokens_and_the_prompt_do_not_count(make_llama):
    model = make_llama()
    row = TokenRow(prompt_ids=(5, 6), completion_ids=(7, 8, 9), mask=(True, False, True))
    assert sequence_log_probs(model, [row]).item() == pytest.approx(by_hand(model, row), abs=1e-5)


def test_all_completions_of_a_length_have_probability_one_together(make_llama):
    model = make_llama(vocab_size=6, sharpness=4.0)
    rows = [TokenRow(prompt_ids=(2, 3), completion_ids=(a, b)) for a in range(6) for b in range(6)]
    assert sequence_log_probs(model, rows).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_an_encoder_decoder_reads_the_prompt_with_its_encoder(make_model):
    model = make_model("t5")
    row = TokenRow(prompt_ids=(5, 6, 7), completion_ids=(8, 9, 1))
    labels = torch.tensor([row.completion_ids])
    loss = model(input_ids=torch.tensor([row.prompt_ids]), labels=labels).loss.item()
    found = sequence_log_probs(model, [row, *rows_of(4)])[0].item()
    assert found == pytest.approx(-3 * loss, rel=1e-5)


def test_a_head_that_is_no_plain_layer_is_asked_for_logits(make_llama, monkeypatch):
    model, rows = make_llama(), rows_of()
    expected = sequence_log_probs(model, rows)
    monkeypatch.setattr("selftrain.training.heads.find_head", lambda *_, **__: None)
    monkeypatch.setattr(scoring, "_CHUNK_ELEMENTS", 100)  # two tokens
    torch.testing.assert_close(sequence_log_probs(model, rows), expected, rtol=0, atol=1e-5)


def test_dropout_is_off_and_the_mode_of_the_model_restored(make_llama):
    model = make_llama(attention_dropout=0.5).train()
    rows = rows_of()
    assert torch.equal(sequence_log_probs(model, rows), sequence_log_probs(model, rows))
    assert model.training


@pytest.mark.filterwarnings(PEFT)
def test_adapters_count(make_llama):
    plain, rows = make_llama(), rows_of()
    adapted = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    torch.testing.assert_close(sequence_log_probs(adapted, rows), sequence_log_probs(plain, rows))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    merged = adapted.merge_and_unload()
    assert not torch.allclose(sequence_log_probs(merged, rows), sequence_log_probs(plain, rows))


@pytest.mark.filterwarnings(PEFT)
def test_prompts_are_shared_through_adapters_but_not_behind_virtual_tokens(make_llama):
    lora = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], r=2))
    assert prompts_obstacle(lora) is None
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "virtual tokens" in prompts_obstacle(get_peft_model(make_llama(), prefix))


def test_the_progress_bar_is_of_rows(make_llama, monkeypatch):
    seen = []

    class Bar:
        def update(self, completed, note=""):
            seen.append(completed)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("selftrain.training.log_probs.progress", lambda *_, **__: Bar())
    sequence_log_probs(make_llama(), rows_of(5), max_tokens=1, show_progress=True)
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows is empty"),
        ([TokenRow(prompt_ids=(3,))], r"rows\[0\] has no scored token"),
        ([TokenRow(completion_ids=(3,))], r"rows\[0\] has no scored token"),
        (
            [TokenRow(prompt_ids=(3,), completion_ids=(4,), mask=(False,))],
            r"rows\[0\] has no scored token",
        ),
    ],
)
def test_rows_without_anything_to_score_are_errors(make_llama, rows, message):
    with pytest.raises(ValueError, match=message):
        sequence_log_probs(make_llama(), rows)


def test_a_budget_of_nothing_is_an_error(make_llama):
    with pytest.raises(ValueError, match="max_tokens must satisfy"):
        sequence_log_probs(make_llama(), rows_of(1), max_tokens=0)
