"""Preference training: the loss by its closed forms, the gradient by enumerating pairs."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from preference_worker import answers, build, groups_of

from selftrain._core.config import from_dict, to_dict
from selftrain.errors import RunConflictError
from selftrain.training import (
    OptimConfig,
    PreferenceConfig,
    PreferenceGroup,
    TokenRow,
    dpo_loss,
    sequence_log_probs,
    train_preferences,
    weights_fingerprint,
)
from selftrain.training import preference_loss as loss_module

PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"  # asked by PEFT
FAST = OptimConfig(learning_rate=3e-3)
ratios = st.lists(st.floats(-20, 20), min_size=1, max_size=4)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def changed(**fields):
    fields = {"num_steps": 4, "batch_size": 3, "log_every": 1, "optim": FAST, **fields}
    return PreferenceConfig(**fields)


def run(model, groups, config=None, **options):
    return train_preferences(model, groups, config or changed(), show_progress=False, **options)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every optimizer step, which is not taken; by clipping nothing is lost."""
    seen = []

    def record(self, *_):
        seen.append(
            torch.cat([p.grad.flatten().clone() for g in self.param_groups for p in g["params"]])
        )

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    return seen


def gradient(model, groups, gradients, **fields):
    fields = {"optim": OptimConfig(learning_rate=1e-3, max_grad_norm=None), **fields}
    run(model, groups, changed(num_steps=1, batch_size=len(groups), **fields))
    return gradients.pop()


def enumerated(model, groups, *, beta=0.1, smoothing=0.0, weighting="pair"):
    """The gradient from every pair by itself: plain forward passes, nothing shared."""
    total = sum(len(g.chosen) * len(g.rejected) for g in groups)
    model.zero_grad()

    def log_ratio(row, reference):
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        log_q = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        own = log_q.gather(1, ids[0, 1:, None])[len(row.prompt_ids) - 1 :]
        return own.sum() - reference

    for group in groups:
        num_pairs = len(group.chosen) * len(group.rejected)
        weight = 1 / total if weighting == "pair" else 1 / (num_pairs * len(groups))
        for (c, c_ref), (r, r_ref) in itertools.product(
            zip(group.chosen, group.chosen_reference, strict=True),
            zip(group.rejected, group.rejected_reference, strict=True),
        ):
            margin = beta * (log_ratio(c, c_ref) - log_ratio(r, r_ref))
            loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
            (weight * loss).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    order = [p for p in trained if p.ndim >= 2] + [p for p in trained if p.ndim < 2]
    return torch.cat([p.grad.flatten() for p in order])


def away_from_reference(seed=1):
    """A model, and groups whose reference is another one."""
    return build(0).eval(), groups_of(build(seed))


# the loss itself


def test_a_model_that_is_its_reference_has_loss_ln_2():
    loss = dpo_loss(doubles([0.0, 0.0]), doubles([0.0]))
    assert loss.tolist() == [[math.log(2)], [math.log(2)]]


def test_at_the_reference_the_gradient_of_a_reward_is_a_half():
    beta = 0.25
    chosen, rejected = doubles([0.0]).requires_grad_(), doubles([0.0]).requires_grad_()
    dpo_loss(chosen, rejected, beta=beta).sum().backward()
    assert chosen.grad.item() / beta == -0.5
    assert rejected.grad.item() / beta == 0.5


@given(ratios, ratios, st.floats(-50, 50), st.sampled_from([0.0, 0.1, 0.4]))
def test_what_both_log_ratios_share_does_not_matter(chosen, rejected, shift, smoothing):
    chosen, rejected = doubles(chosen), doubles(rejected)
    plain = dpo_loss(chosen, rejected, label_smoothing=smoothing)
    moved = dpo_loss(chosen + shift, rejected + shift, label_smoothing=smoothing)
    torch.testing.assert_close(moved, plain, rtol=1e-9, atol=1e-9)


@given(ratios, ratios, st.sampled_from([0.0, 0.3]))
def test_the_loss_tends_to_ln_2_as_beta_tends_to_0(chosen, rejected, smoothing):
    loss = dpo_loss(doubles(chosen), doubles(rejected), beta=1e-9, label_smoothing=smoothing)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)), rtol=0, atol=1e-7)


@given(ratios, ratios, st.floats(0.01, 2), st.sampled_from([0.0, 0.2, 0.49]))
def test_the_loss_is_the_mixture_of_both_orders(chosen, rejected, beta, smoothing):
    loss = dpo_loss(doubles(chosen), doubles(rejected), beta=beta, label_smoothing=smoothing)
    margin = beta * (doubles(chosen)[:, None] - doubles(rejected)[None, :])
    expected = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.05, 0.2, 0.4])
def test_with_label_smoothing_the_best_margin_is_the_log_odds(smoothing):
    beta = 0.5
    chosen, rejected = doubles([0.0]).requires_grad_(), doubles([0.0]).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [chosen, rejected], lr=0.5, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14
    )

    def closure():
        optimizer.zero_grad()
        loss = dpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    margin = beta * (chosen - rejected).item()
    assert margin == pytest.approx(math.log((1 - smoothing) / smoothing), rel=1e-5)


def test_without_label_smoothing_the_loss_of_separable_data_falls_for_ever():
    losses = dpo_loss(doubles([1.0, 10.0, 100.0]), doubles([0.0]), beta=1.0)[:, 0].tolist()
    assert losses[0] > losses[1] > losses[2] > 0


def test_huge_margins_overflow_nothing():
    loss = dpo_loss(torch.tensor([-1e6, 1e6]), torch.tensor([0.0]), beta=1.0, label_smoothing=0.0)
    assert loss[:, 0].tolist() == [1e6, 0.0]


def test_the_gradient_of_the_loss_is_right():
    chosen, rejected = doubles([0.5, -1.0, 3.0]), doubles([0.2, -0.4])
    torch.autograd.gradcheck(
        lambda c, r: dpo_loss(c, r, beta=0.7, label_smoothing=0.1),
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_of_pairs_add_up_to_all_pairs(monkeypatch, chunk):
    monkeypatch.setattr(loss_module, "_CHUNK_PAIRS", chunk)
    values = doubles([0.5, -1.0, 3.0, 0.5, 0.2])
    found = loss_module.pair_sums(values, 3, beta=0.7, label_smoothing=0.1)
    leaf = values.clone().requires_grad_()
    loss = dpo_loss(leaf[:3], leaf[3:], beta=0.7, label_smoothing=0.1).sum()
    loss.backward()
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, leaf.grad)
    # 0.5 > 0.2, -1 < both, 3 > both, and 0.5 against 0.5 counts half
    assert found.right.item() == 3.5
    margins = values[:3, None] - values[None, 3:]
    assert found.margin.item() == pytest.approx(0.7 * margins.sum().item())


# the gradient of a step


@pytest.mark.parametrize("weighting", ["pair", "problem"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reading_each_answer_once_gives_the_gradient_of_all_pairs(gradients, weighting, smoothing):
    model, groups = away_from_reference()
    found = gradient(
        model, groups, gradients, problem_weighting=weighting, label_smoothing=smoothing
    )
    expected = enumerated(model, groups, smoothing=smoothing, weighting=weighting)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 25, 60, 150])
def test_two_passes_give_the_gradient_of_one(gradients, max_tokens):
    model, groups = away_from_reference()
    one = gradient(model, groups, gradients)
    many = gradient(model, groups, gradients, micro_batch_tokens=max_tokens)
    torch.testing.assert_close(many, one, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings(PEFT)
def test_the_gradient_of_adapters_is_that_of_all_pairs(gradients):
    torch.manual_seed(3)
    model = get_peft_model(build(), LoraConfig(target_modules="all-linear", r=4)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    groups = groups_of(build(1))
    found = gradient(model, groups, gradients)
    torch.testing.assert_close(found, enumerated(model, groups), rtol=0, atol=1e-6)


def test_sharing_prompts_does_not_change_the_gradient(gradients, monkeypatch):
    model, groups = away_from_reference()
    shared = gradient(model, groups, gradients)
    monkeypatch.setattr("selftrain.training.row_scores.prompts_obstacle", lambda _: "not now")
    torch.testing.assert_close(gradient(model, groups, gradients), shared, rtol=0, atol=1e-6)


def test_a_head_that_is_no_plain_layer_does_not_change_the_gradient(gradients, monkeypatch):
    model, groups = away_from_reference()
    hidden = gradient(model, groups, gradients)
    monkeypatch.setattr("selftrain.training.heads.find_head", lambda *_, **__: None)
    torch.testing.assert_close(gradient(model, groups, gradients), hidden, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mamba", "mixtral", "bloom", "t5"])
def test_other_architectures_descend_the_same_loss(make_model, name):
    model = make_model(name)
    groups = groups_of(model, num_groups=3)
    report = run(model, groups, changed(num_steps=12))
    assert report.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert report.metrics["loss"] < 0.66
    assert report.metrics["accuracy"] > 0.9


def test_every_pair_weighs_the_same_over_an_epoch(gradients):
    model, groups = away_from_reference()
    config = changed(
        num_steps=None,
        num_epochs=1,
        batch_size=1,
        optim=OptimConfig(learning_rate=1e-3, max_grad_norm=None),
    )
    run(model, groups, config)
    mean = torch.stack(gradients).mean(0)
    torch.testing.assert_close(mean, enumerated(model, groups), rtol=0, atol=1e-6)


# training


def test_training_begins_at_ln_2_and_ranks_the_answers():
    model = build()
    groups = groups_of(model)
    report = run(model, groups, changed(num_steps=25, eval_every=5), eval_groups=groups)
    assert report.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert report.history[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert report.metrics["eval/accuracy"] > 0.95
    assert report.metrics["eval/loss"] < 0.4
    first, last = (r["eval/margin"] for r in (report.history[4], report.history[-1]))
    assert 0 < first < last


def test_an_independent_pass_agrees_with_the_measures():
    model, groups = away_from_reference()
    config = changed(num_steps=1, optim=OptimConfig(learning_rate=1e-12))
    report = run(model, groups, config, eval_groups=groups)
    losses, right, margins = [], [], []
    for group in groups:
        values = [
            sequence_log_probs(model, rows) - doubles(reference)
            for rows, reference in (
                (group.chosen, group.chosen_reference),
                (group.rejected, group.rejected_reference),
            )
        ]
        margin = 0.1 * (values[0][:, None] - values[1])
        losses += F.softplus(-margin).flatten().tolist()
        right += (margin > 0).double().flatten().tolist()
        margins += margin.flatten().tolist()
    for name, expected in (("loss", losses), ("accuracy", right), ("margin", margins)):
        mean = math.fsum(expected) / len(expected)
        assert report.metrics[f"eval/{name}"] == pytest.approx(mean, abs=1e-5)


def test_dropout_is_off(gradients, make_llama):
    model = make_llama(vocab_size=24, attention_dropout=0.5).train()
    groups = groups_of(model)
    torch.testing.assert_close(
        gradient(model, groups, gradients), gradient(model, groups, gradients), rtol=0, atol=0
    )
    assert model.training


@pytest.mark.filterwarnings(PEFT)
def test_the_reference_of_adapters_is_where_they_began_not_the_base():
    torch.manual_seed(3)
    model = get_peft_model(build(), LoraConfig(target_modules="all-linear", r=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    groups = groups_of(model)
    with model.disable_adapter():
        without = sequence_log_probs(model, groups[0].rows).tolist()
    assert without != pytest.approx(list(groups[0].reference), abs=1e-2)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    config = changed(num_steps=30, beta=1.0, optim=OptimConfig(learning_rate=1e-2))
    report = run(model, groups, config, reference=weights_fingerprint(model))
    assert report.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert report.metrics["loss"] < 0.6
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(frozen[name], parameter)


@pytest.mark.parametrize("max_tokens", [40, 16384])
def test_an_interrupted_run_continues_to_the_same_bits(tmp_path, max_tokens):
    class Interrupted(list):
        def __getitem__(self, index):
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    groups = groups_of(build())
    config = changed(num_steps=6, save_every=2, micro_batch_tokens=max_tokens)
    whole, broken, resumed = build(), build(), build()
    expected = run(whole, groups, config, output_dir=tmp_path / "a", reference=None)
    with pytest.raises(KeyboardInterrupt):
        run(broken, Interrupted(groups), config, output_dir=tmp_path / "b")
    assert list((tmp_path / "b").glob("checkpoint-*"))
    report = run(resumed, groups, config, output_dir=tmp_path / "b")
    assert torch.equal(parameters(whole), parameters(resumed))
    name = "checkpoint-00000006.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [r["loss"] for r in report.history] == [r["loss"] for r in expected.history]
    assert report.steps == 6


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    groups = groups_of(build())
    run(build(), groups, changed(num_steps=1), output_dir=tmp_path)
    with pytest.raises(RunConflictError, match=r"beta: 0\.1 -> 0\.5"):
        run(build(), groups, changed(num_steps=1, beta=0.5), output_dir=tmp_path)


def test_epochs_are_counted_in_groups(tmp_path):
    groups = groups_of(build())
    config = changed(num_steps=None, num_epochs=2, batch_size=4)
    report = run(build(), groups, config, output_dir=tmp_path)
    assert report.steps == math.ceil(2 * 7 / 4)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert run(build(), groups, changed(num_steps=None, batch_size=7)).steps == 1


def test_the_configuration_survives_json():
    config = PreferenceConfig(num_epochs=3, problem_weighting="problem", optim=FAST)
    assert from_dict(PreferenceConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match="has no field beat"):
        from_dict(PreferenceConfig, {"beat": 0.1})


# bad input


def test_a_model_that_is_not_the_reference_is_an_error():
    groups = groups_of(build())
    with pytest.raises(ValueError, match="reference log-probabilities are of another model"):
        run(build(1), groups, reference=weights_fingerprint(build()))


def test_no_group_is_an_error():
    with pytest.raises(ValueError, match="groups is empty"):
        run(build(), [])
    with pytest.raises(ValueError, match="eval_groups is empty"):
        run(build(), groups_of(build()), eval_groups=[])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen": (), "chosen_reference": ()}, "chosen of group 'p' is empty"),
        ({"rejected": (), "rejected_reference": ()}, "rejected of group 'p' is empty"),
        ({"chosen_reference": (0.0, 0.0)}, "chosen_reference has 2 log-probabilities for 1"),
        ({"rejected_reference": (math.nan,)}, "rejected_reference holds nan"),
        ({"chosen_reference": (-math.inf,)}, "chosen_reference holds -inf"),
    ],
)
def test_groups_that_give_no_pair_are_errors(fields, message):
    row = TokenRow(prompt_ids=(2,), completion_ids=(3,))
    whole = {
        "chosen": (row,),
        "rejected": (row,),
        "chosen_reference": (-1.0,),
        "rejected_reference": (-1.0,),
        "name": "p",
    }
    with pytest.raises(ValueError, match=message):
        PreferenceGroup(**{**whole, **fields})


def test_an_answer_with_nothing_to_score_is_an_error():
    (_, rejected), *_ = answers()
    group = PreferenceGroup(
        chosen=(TokenRow(prompt_ids=(3,)),),
        rejected=tuple(rejected),
        chosen_reference=(0.0,),
        rejected_reference=(0.0,) * len(rejected),
    )
    with pytest.raises(ValueError, match=r"groups\[0\]\.chosen\[0\] has no scored token"):
        run(build(), [group])


def test_a_log_probability_that_is_not_finite_is_an_error_before_the_update():
    groups = groups_of(build())
    model = build()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    before = parameters(model).clone()
    with pytest.raises(FloatingPointError, match=r"step 0: group \d has an answer whose log-prob"):
        run(model, groups)
    assert torch.equal(before.nan_to_num(7.0), parameters(model).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "beta must satisfy"),
        ({"label_smoothing": 0.5}, "label_smoothing must satisfy"),
        ({"problem_weighting": "token"}, "problem_weighting must be one of"),
        ({"num_steps": 3, "num_epochs": 1}, "are both given"),
        ({"num_steps": 0}, "num_steps must satisfy"),
        ({"batch_size": 0}, "batch_size must satisfy"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens must satisfy"),
        ({"save_every": 0}, "save_every must satisfy"),
    ],
)
def test_settings_out_of_range_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**fields)


def test_log_ratios_with_two_axes_are_an_error():
    with pytest.raises(ValueError, match="chosen_log_ratios must have one axis"):
        dpo_loss(torch.zeros(2, 2), torch.zeros(2))
