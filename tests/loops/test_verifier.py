"""Verifiers: what each scoring is, that order and batches do not matter, save and load."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from selftrain import Completion, HFSampler, SamplingParams
from selftrain.loops import BestOfK, Verifier, score_samples
from selftrain.loops.sample import Sample
from selftrain.training import TokenRow, sequence_log_probs

PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"  # asked by PEFT
TEXTS = ["12", "7", "12+3=15", "0"]


@pytest.fixture
def model(make_llama):
    return make_llama(sharpness=3.0)


def log_probs(model, tokenizer, prompt, texts):
    rows = [
        TokenRow(
            prompt_ids=tuple(tokenizer(prompt)["input_ids"]),
            completion_ids=(*tokenizer(text)["input_ids"], tokenizer.eos_token_id),
        )
        for text in texts
    ]
    return sequence_log_probs(model, rows)


def test_the_score_is_the_log_likelihood_end_of_sequence_included(model, char_tokenizer):
    found = Verifier(model, char_tokenizer).score("a=", TEXTS)
    expected = log_probs(model, char_tokenizer, "a=", TEXTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_mean_divides_by_the_number_of_tokens(model, char_tokenizer):
    total = Verifier(model, char_tokenizer).score("a=", TEXTS)
    mean = Verifier(model, char_tokenizer, scoring="mean_log_prob").score("a=", TEXTS)
    lengths = torch.tensor([len(text) + 1 for text in TEXTS], dtype=torch.float64)
    torch.testing.assert_close(mean * lengths, total, rtol=0, atol=1e-4)


def test_likelihood_is_that_of_the_reference_plus_the_reward(model, make_llama, char_tokenizer):
    reference = make_llama(seed=5, sharpness=2.0)
    reward = Verifier(
        model, char_tokenizer, scoring="log_ratio", reference=reference, beta=0.25
    ).score("a=", TEXTS)
    total = Verifier(model, char_tokenizer).score("a=", TEXTS)
    base = log_probs(reference, char_tokenizer, "a=", TEXTS)
    torch.testing.assert_close(base + reward / 0.25, total, rtol=0, atol=1e-4)


def test_against_itself_as_reference_every_reward_is_zero(model, char_tokenizer):
    verifier = Verifier(model, char_tokenizer, scoring="log_ratio", reference=model)
    assert verifier.score("a=", TEXTS).tolist() == [0.0] * len(TEXTS)


def test_the_order_of_completions_and_prompts_moves_scores_with_them(model, char_tokenizer):
    verifier = Verifier(model, char_tokenizer, max_tokens=20)
    prompts, lists = ["a=", "bc+1="], [TEXTS, TEXTS[:2]]
    one, two = verifier.score_all(prompts, lists)
    back_two, back_one = verifier.score_all(prompts[::-1], [lists[1], lists[0][::-1]])
    torch.testing.assert_close(back_one.flip(0), one, rtol=0, atol=1e-5)
    torch.testing.assert_close(back_two, two, rtol=0, atol=1e-5)
    assert [len(scores) for scores in (one, two)] == [4, 2]


def test_equal_answers_have_equal_bits(model, char_tokenizer):
    scores = Verifier(model, char_tokenizer).score("a=", ["12", "7", "12", "123", "12"])
    assert scores[0] == scores[2] == scores[4]


def test_own_ids_are_taken_where_a_completion_has_them(model, char_tokenizer):
    verifier = Verifier(model, char_tokenizer)
    prompt = tuple(char_tokenizer("a=")["input_ids"])
    ended = Completion("xx", (30, 31, 1), None, "stop")
    cut = Completion("xx", (30, 31), None, "length")
    stopped = Completion("12", (30, 31), None, "stop")  # by a stop string: its text ends
    found = verifier.score("a=", [ended, cut, stopped, "12"])
    rows = [TokenRow(prompt_ids=prompt, completion_ids=ids) for ids in ((30, 31, 1), (30, 31))]
    torch.testing.assert_close(found[:2], sequence_log_probs(model, rows), rtol=0, atol=1e-5)
    assert found[2] == found[3]


def test_a_failed_completion_is_never_the_best(model, char_tokenizer):
    verifier = Verifier(model, char_tokenizer)
    failed = Completion("", None, None, "error")
    assert verifier.score("a=", [failed, "12"])[0] == -math.inf
    assert verifier.best("a=", [failed, "12"]) == 1
    with pytest.raises(ValueError, match="every one of them ended in an error"):
        verifier.best("a=", [failed])
    with pytest.raises(ValueError, match="completions is empty"):
        verifier.best("a=", [])


def test_the_best_is_the_first_of_the_highest(model, char_tokenizer):
    verifier = Verifier(model, char_tokenizer)
    best = verifier.best("a=", TEXTS)
    assert best == int(verifier.score("a=", TEXTS).argmax())
    assert verifier.best("a=", [TEXTS[best]] * 3) == 0


def test_samples_are_scored_under_their_tasks_prompts(model, char_tokenizer, make_task):
    task = make_task(prefix="q: ")
    samples = [
        Sample(
            round=0, problem_id=f"p{p}", index=i, seed=0, text=text, token_ids=None,
            finish_reason="stop", log_prob=None, policy="", sampling="",
        )
        for i, text in enumerate(TEXTS)
        for p in (2, 0)
    ]  # fmt: skip
    verifier = Verifier(model, char_tokenizer)
    found = score_samples(verifier, samples, task)
    for sample, score in zip(samples, found, strict=True):
        prompt = task.prompt(task.by_id()[sample.problem_id])
        expected = log_probs(model, char_tokenizer, prompt, [sample.text])
        assert score.item() == pytest.approx(expected.item(), abs=1e-4)
    with pytest.raises(ValueError, match="which task 'digits' does not have"):
        score_samples(verifier, samples, make_task(first=1))


def test_best_of_k_is_the_completion_the_verifier_prefers(model, char_tokenizer):
    sampler, verifier = HFSampler(model, char_tokenizer), Verifier(model, char_tokenizer)
    params = SamplingParams(max_new_tokens=6, seed=3)
    found = BestOfK(sampler, verifier).sample(["a=", "b="], num_samples=5, params=params)
    drawn = sampler.sample(["a=", "b="], num_samples=5, params=params)
    for prompt, best, own in zip(["a=", "b="], found, drawn, strict=True):
        scores = verifier.score(prompt, own)
        assert best == own[int(scores.argmax())]
        assert scores.max() > scores.min()


@pytest.mark.parametrize("scoring", ["log_prob", "log_ratio"])
def test_a_saved_verifier_scores_alike(model, make_llama, char_tokenizer, tmp_path, scoring):
    reference = make_llama(seed=5) if scoring == "log_ratio" else None
    verifier = Verifier(model, char_tokenizer, scoring=scoring, reference=reference, beta=0.3)
    verifier.save(tmp_path / "v")
    loaded = Verifier.load(tmp_path / "v")
    assert (loaded.scoring, loaded.beta) == (scoring, 0.3)
    assert torch.equal(loaded.score("a=", TEXTS), verifier.score("a=", TEXTS))


@pytest.mark.filterwarnings(PEFT)
def test_a_verifier_of_adapters_is_saved_with_its_reference_adapter(
    make_llama, char_tokenizer, tmp_path
):
    make_llama().save_pretrained(tmp_path / "base")
    base = make_llama()
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj"], r=2, base_model_name_or_path=base.name_or_path)
    model = get_peft_model(base, config)
    model.add_adapter("start", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    flags = [p.requires_grad for p in model.parameters()]
    verifier = Verifier(model, char_tokenizer, scoring="log_ratio", reference="start")
    scores = verifier.score("a=", TEXTS)
    assert [p.requires_grad for p in model.parameters()] == flags
    own = log_probs(model, char_tokenizer, "a=", TEXTS)
    model.set_adapter("start")
    started = log_probs(model, char_tokenizer, "a=", TEXTS)
    model.set_adapter("default")
    torch.testing.assert_close(scores, 0.1 * (own - started), rtol=0, atol=1e-5)
    assert scores.abs().max() > 1e-3
    verifier.save(tmp_path / "v")
    assert not list((tmp_path / "v").glob("model*.safetensors"))
    loaded = Verifier.load(tmp_path / "v")
    torch.testing.assert_close(loaded.score("a=", TEXTS), scores, rtol=0, atol=1e-6)


def test_weights_changed_since_they_were_saved_are_an_error(
    model, make_llama, char_tokenizer, tmp_path
):
    Verifier(model, char_tokenizer).save(tmp_path)
    make_llama(seed=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="but the verifier was saved with"):
        Verifier.load(tmp_path)


def test_settings_nobody_knows_are_an_error(model, char_tokenizer, tmp_path):
    Verifier(model, char_tokenizer).save(tmp_path)
    path = tmp_path / "verifier.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scorign": 1}))
    with pytest.raises(ValueError, match="has no field scorign"):
        Verifier.load(tmp_path)
    with pytest.raises(ValueError, match="holds no verifier"):
        Verifier.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring": "logp"}, "scoring must be one of"),
        ({"scoring": "log_ratio"}, 'a reference is needed for "log_ratio"'),
        ({"reference": torch.nn.Linear(1, 1)}, "and for nothing else"),
        ({"scoring": "log_ratio", "reference": "start"}, "'start' is no adapter of the model"),
        ({"beta": 0.0}, "beta must satisfy"),
        ({"max_tokens": 0}, "max_tokens must satisfy"),
    ],
)
def test_settings_out_of_range_are_errors(model, char_tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        Verifier(model, char_tokenizer, **fields)


def test_lists_that_do_not_fit_are_an_error(model, char_tokenizer):
    with pytest.raises(ValueError, match="completions has 1 lists for 2 prompts"):
        Verifier(model, char_tokenizer).score_all(["a", "b"], [["1"]])
