import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from samplers import FixedSampler, RecordingSampler

from selftrain.decoding import HFSampler, SamplingParams
from selftrain.distill import DistillConfig, Distiller
from selftrain.ops import divergence
from selftrain.training import FinetuneConfig, OptimConfig, finetune

ROWS = [
    {"prompt_ids": [3, 4, 5], "completion_ids": [6, 7, 1]},
    {"prompt_ids": [8], "completion_ids": [9, 10, 11, 12, 1]},
    {"prompt_ids": [13, 14, 15, 16, 17], "completion_ids": [1]},
    {"prompt_ids": [18, 19], "completion_ids": [20, 21, 22]},
    {"prompt_ids": [23], "completion_ids": [24, 1]},
]
COMPLETIONS = {tuple(r["prompt_ids"]): r["completion_ids"] for r in ROWS}
CONFIG = DistillConfig(
    num_steps=4,
    batch_size=5,
    log_every=1,
    sampling=SamplingParams(max_new_tokens=6),
    optim=OptimConfig(learning_rate=1e-2),
)
SUPERVISED = dataclasses.replace(CONFIG, on_policy_fraction=0.0)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def make(student, teacher, tokenizer, config=CONFIG, **kwargs):
    kwargs.setdefault("sampler", RecordingSampler(student))
    return Distiller(student, teacher, tokenizer, config, **kwargs)


def by_hand(student, teacher, row, **options):
    """The divergence at every completion token of one row."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    where = slice(len(row["prompt_ids"]) - 1, -1)
    return divergence(
        student(ids).logits[0, where].double(), teacher(ids).logits[0, where].double(), **options
    ).detach()


@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_loss_is_the_mean_divergence_over_completion_tokens(
    student, teacher, char_tokenizer, normalize
):
    config = dataclasses.replace(SUPERVISED, normalize=normalize, divergence="forward_kl")
    values = [by_hand(student, teacher, row, kind="forward_kl") for row in ROWS]
    if normalize == "sequence":
        expected = torch.stack([v.mean() for v in values]).mean().item()
    else:
        expected = torch.cat(values).mean().item()
    metrics = make(student, teacher, char_tokenizer, config).step(ROWS)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["divergence/dataset"] == metrics["loss"]
    assert metrics["num_scored_tokens"] == 14


def test_agreement_is_measured_at_the_scored_tokens(student, teacher, char_tokenizer):
    config = dataclasses.replace(SUPERVISED, normalize="token")
    tv = torch.cat([by_hand(student, teacher, row, kind="total_variation") for row in ROWS])
    metrics = make(student, teacher, char_tokenizer, config).step(ROWS)
    assert metrics["acceptance"] == pytest.approx(1 - tv.mean().item(), rel=1e-5)
    assert 0 < metrics["student_entropy"] < math.log(len(char_tokenizer)) + 1e-6
    assert metrics["truncated_fraction"] == pytest.approx(1 / 5)
    assert metrics["completion_length"] == pytest.approx(14 / 5)


def test_on_policy_with_the_data_set_as_samples_equals_supervised(
    make_llama, teacher, char_tokenizer
):
    a, b = make_llama(), make_llama()
    sampler = FixedSampler(COMPLETIONS)
    on_policy = make(a, teacher, char_tokenizer, CONFIG, sampler=sampler).step(ROWS)
    supervised = make(b, teacher, char_tokenizer, SUPERVISED).step(ROWS)
    assert on_policy["loss"] == supervised["loss"]
    assert torch.equal(parameters(a), parameters(b))


def test_likelihood_of_fixed_text_equals_plain_fine_tuning(make_llama, teacher, char_tokenizer):
    a, b = make_llama(), make_llama()
    config = dataclasses.replace(SUPERVISED, divergence="nll", normalize="token")
    distilled = make(a, teacher, char_tokenizer, config).fit(ROWS, show_progress=False)
    plain = FinetuneConfig(num_steps=4, batch_size=5, log_every=1, optim=CONFIG.optim)
    tuned = finetune(b, ROWS, plain, show_progress=False)
    # Not bit for bit: the one sums in another order, never having all logits in memory.
    for ours, theirs in zip(distilled.history, tuned.history, strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    assert len(distilled.history) == 4


def test_seq_kd_learns_the_likelihood_of_the_teachers_text(student, teacher, char_tokenizer):
    config = dataclasses.replace(
        CONFIG, divergence="nll", on_policy_fraction=0.0, fixed_source="teacher"
    )
    row = ROWS[0]
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    expected = F.cross_entropy(student(ids).logits[0, 2:-1], ids[0, 3:]).item()
    distiller = make(
        student, teacher, char_tokenizer, config, teacher_sampler=FixedSampler(COMPLETIONS)
    )
    metrics = distiller.step([{"prompt_ids": row["prompt_ids"]}])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["divergence/teacher"] == metrics["loss"]


def test_samples_come_from_the_current_student_by_seeds_of_step_and_row(
    make_llama, teacher, char_tokenizer
):
    together, alone = make_llama(), make_llama()
    a = make(together, teacher, char_tokenizer)
    b = make(alone, teacher, char_tokenizer, dataclasses.replace(CONFIG, micro_batch_size=2))
    for _ in range(3):
        a.step(ROWS)
        b.step(ROWS)
    used = [
        [seed for _, _, seeds in d._writer._samplers["student"].calls for (seed,) in seeds]
        for d in (a, b)
    ]
    assert used[0] == used[1]
    seeds = used[0]
    assert len(set(seeds)) == 15


@pytest.mark.parametrize("mixing", ["batch", "example"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_share_of_on_policy_text_is_the_fraction(mixing, fraction):
    from selftrain.distill.texts import draw_sources

    config = dataclasses.replace(CONFIG, on_policy_fraction=fraction, mixing=mixing)
    sources = [s for step in range(1000) for s in draw_sources(config, step, 2)]
    share = sources.count("student") / len(sources)
    assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / 1000) + 1e-12


def test_one_draw_decides_for_the_batch_unless_examples_are_mixed():
    from selftrain.distill.texts import draw_sources

    batch = dataclasses.replace(CONFIG, on_policy_fraction=0.5)
    example = dataclasses.replace(batch, mixing="example")
    assert all(len(set(draw_sources(batch, step, 8))) == 1 for step in range(50))
    assert any(len(set(draw_sources(example, step, 8))) == 2 for step in range(50))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
@pytest.mark.parametrize("normalize", ["sequence", "token"])
def test_uneven_micro_batches_equal_one_batch(
    make_llama, teacher, char_tokenizer, monkeypatch, micro_batch_size, normalize
):
    gradients = []
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *_: gradients.append(
            torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]])
        ),
    )
    config = dataclasses.replace(SUPERVISED, normalize=normalize)
    split = dataclasses.replace(config, micro_batch_size=micro_batch_size)
    for each in (config, split):
        make(make_llama(), teacher, char_tokenizer, each).step(ROWS)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_text_after_the_first_end_of_sequence_has_no_effect(make_llama, teacher, char_tokenizer):
    a, b = make_llama(), make_llama()
    make(a, teacher, char_tokenizer, SUPERVISED).step(ROWS[:1])
    longer = [{**ROWS[0], "completion_ids": [*ROWS[0]["completion_ids"], 30, 31, 1]}]
    make(b, teacher, char_tokenizer, SUPERVISED).step(longer)
    assert torch.equal(parameters(a), parameters(b))


def test_rows_of_weight_zero_have_no_effect(make_llama, teacher, char_tokenizer):
    a, b = make_llama(), make_llama()
    make(a, teacher, char_tokenizer, SUPERVISED).step(ROWS[:2])
    extra = {"prompt_ids": [30], "completion_ids": [31, 32], "weight": 0.0}
    make(b, teacher, char_tokenizer, SUPERVISED).step([*ROWS[:2], extra])
    torch.testing.assert_close(parameters(a), parameters(b), rtol=0, atol=1e-6)


def test_a_batch_of_weight_zero_changes_nothing(student, teacher, char_tokenizer):
    before = parameters(student).clone()
    metrics = make(student, teacher, char_tokenizer, SUPERVISED).step([{**ROWS[0], "weight": 0.0}])
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0)
    assert torch.equal(before, parameters(student))


def test_nothing_leaks_into_teacher_modes_or_generators(student, teacher, char_tokenizer):
    before, rng = parameters(teacher).clone(), torch.get_rng_state()
    student.eval()
    student.model.layers[0].train()
    make(student, teacher, char_tokenizer).step(ROWS)
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(before, parameters(teacher))
    assert not teacher.training
    assert (student.training, student.model.layers[0].training) == (False, True)
    assert torch.equal(rng, torch.get_rng_state())


def test_padded_vocabularies_are_compared_on_the_shared_tokens(make_llama, teacher, char_tokenizer):
    wide = make_llama(seed=5, vocab_size=64)
    config = dataclasses.replace(SUPERVISED, divergence="forward_kl")
    metrics = make(wide, teacher, char_tokenizer, config).step(ROWS[:1])
    ids = torch.tensor([ROWS[0]["prompt_ids"] + ROWS[0]["completion_ids"]])
    fresh = make_llama(seed=5, vocab_size=64)
    log_q = torch.log_softmax(fresh(ids).logits[0, 2:-1, : len(char_tokenizer)].double(), -1)
    log_p = torch.log_softmax(teacher(ids).logits[0, 2:-1].double(), -1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_text_and_chat_rows_equal_their_token_ids(make_llama, teacher, char_tokenizer):
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}?{% endif %}"
    )
    forms = [
        {"prompt": "ab?", "completion": "cd"},
        {"prompt": [{"role": "user", "content": "ab"}], "completion": "cd"},
        {
            "prompt_ids": tokenizer("ab?").input_ids,
            "completion_ids": [*tokenizer("cd").input_ids, 1],
        },
    ]
    models = [make_llama() for _ in forms]
    for model, row in zip(models, forms, strict=True):
        make(model, teacher, tokenizer, SUPERVISED).step([row])
    assert torch.equal(parameters(models[0]), parameters(models[1]))
    assert torch.equal(parameters(models[0]), parameters(models[2]))


def test_the_tokenizer_needs_no_pad_token(student, teacher, char_tokenizer):
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.pad_token = None
    assert math.isfinite(make(student, teacher, tokenizer, SUPERVISED).step(ROWS)["loss"])


def test_bfloat16_models_are_compared_in_float32(make_llama, teacher, char_tokenizer):
    exact = make(make_llama(), teacher, char_tokenizer, SUPERVISED).step(ROWS)
    half = make(
        make_llama().bfloat16(), copy.deepcopy(teacher).bfloat16(), char_tokenizer, SUPERVISED
    ).step(ROWS)
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.05)
    # A bfloat16 mean would have 8 bits.
    assert torch.tensor(half["loss"]).bfloat16().item() != half["loss"]


def test_evaluation_uses_given_text_or_the_students_own(student, teacher, char_tokenizer):
    distiller = make(student, teacher, char_tokenizer, SUPERVISED)
    given = distiller.evaluate(ROWS[:1])
    expected = by_hand(student, teacher, ROWS[0], kind="jsd").mean().item()
    assert given["loss"] == pytest.approx(expected, rel=1e-5)
    prompts = [{"prompt_ids": row["prompt_ids"]} for row in ROWS]
    assert distiller.evaluate(prompts) == distiller.evaluate(prompts)


def test_save_and_load_continue_the_training(make_llama, teacher, char_tokenizer, tmp_path):
    student = make_llama()
    distiller = make(student, teacher, char_tokenizer, SUPERVISED)
    distiller.step(ROWS)
    distiller.save(tmp_path / "student")
    loaded = Distiller.load(tmp_path / "student", teacher=teacher)
    assert loaded.config == distiller.config
    assert (loaded.num_steps, loaded.num_scored_tokens) == (1, 14)
    a, b = distiller.step(ROWS), loaded.step(ROWS)
    a.pop("tokens_per_second"), b.pop("tokens_per_second")
    assert a == b
    assert torch.equal(parameters(student), parameters(loaded.student))


def test_a_loss_that_is_not_finite_names_step_source_and_row(student, teacher, char_tokenizer):
    with torch.no_grad():
        teacher.model.embed_tokens.weight[9] = math.nan
        teacher.lm_head.weight = torch.nn.Parameter(
            torch.randn(len(char_tokenizer), 32), requires_grad=False
        )
    distiller = make(student, teacher, char_tokenizer, SUPERVISED)
    before = parameters(student).clone()
    with pytest.raises(FloatingPointError, match=r"step 0: the loss of row 1 \(source: dataset\)"):
        distiller.step(ROWS)
    assert torch.equal(before, parameters(student))


def test_on_policy_reverse_kl_brings_the_student_to_the_teacher(
    make_llama, teacher, char_tokenizer
):
    prompts = [{"prompt_ids": [token]} for token in range(3, 19)]
    for seed in range(3):
        student = make_llama(seed=10 + seed)
        config = dataclasses.replace(
            CONFIG, divergence="reverse_kl", num_steps=60, batch_size=16, seed=seed
        )
        distiller = make(student, teacher, char_tokenizer, config)
        before = distiller.evaluate(prompts)
        distiller.fit(prompts, show_progress=False)
        after = distiller.evaluate(prompts)
        assert after["loss"] < 0.6 * before["loss"]
        assert after["acceptance"] > before["acceptance"]


def test_on_policy_training_helps_more_on_own_text_than_supervised_at_equal_steps(
    make_llama, teacher, char_tokenizer
):
    """Oracle 13 of the method: E_{y~q} KL(q || p), mean over three seeds."""
    prompts = [{"prompt_ids": [token]} for token in range(3, 19)]
    sampled = HFSampler(teacher, char_tokenizer).sample(
        [row["prompt_ids"] for row in prompts],
        num_samples=1,
        params=SamplingParams(max_new_tokens=6, seed=0),
    )
    data = [
        {**row, "completion_ids": list(c.token_ids)}
        for row, (c,) in zip(prompts, sampled, strict=True)
    ]
    left = {"on-policy": 0.0, "supervised": 0.0}
    for seed in range(3):
        common = dataclasses.replace(CONFIG, num_steps=60, batch_size=16, seed=seed)
        on_policy = dataclasses.replace(common, divergence="reverse_kl")
        supervised = dataclasses.replace(common, divergence="forward_kl", on_policy_fraction=0.0)
        for name, config in (("on-policy", on_policy), ("supervised", supervised)):
            student = make_llama(seed=20 + seed)
            make(student, teacher, char_tokenizer, config).fit(data, show_progress=False)
            left[name] += make(student, teacher, char_tokenizer, on_policy).evaluate(prompts)[
                "loss"
            ]
    assert left["on-policy"] < 0.9 * left["supervised"]


def test_a_teacher_that_is_the_student_is_an_error(student, char_tokenizer):
    with pytest.raises(ValueError, match=r"copy\.deepcopy"):
        make(student, student, char_tokenizer)


def test_a_teacher_that_shares_parameters_with_the_student_is_an_error(
    student, make_llama, char_tokenizer
):
    teacher = make_llama(seed=2)
    teacher.model.norm = student.model.norm
    with pytest.raises(ValueError, match="share parameters"):
        make(student, teacher, char_tokenizer)


def test_a_teacher_that_requires_gradients_is_frozen_with_a_warning(
    student, make_llama, char_tokenizer
):
    teacher = make_llama(seed=2)
    with pytest.warns(UserWarning, match="requires_grad_"):
        make(student, teacher, char_tokenizer)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_models_smaller_than_the_vocabulary_are_an_error_that_points_to_seq_kd(
    make_llama, teacher, char_tokenizer
):
    with pytest.raises(ValueError, match=r"student scores 40 tokens.*SeqKD"):
        make(make_llama(vocab_size=40), teacher, char_tokenizer)


def test_tokenizers_that_differ_are_an_error_that_names_a_token(student, teacher, char_tokenizer):
    other = copy.deepcopy(char_tokenizer)
    other.add_tokens(["zz"])
    with pytest.raises(ValueError, match=r"differ in 1 tokens, for one 'zz' \(None and 47\)"):
        make(student, teacher, char_tokenizer, teacher_tokenizer=other)


def test_truncated_sampling_on_policy_warns(student, teacher, char_tokenizer):
    config = dataclasses.replace(CONFIG, sampling=SamplingParams(max_new_tokens=6, top_p=0.9))
    with pytest.warns(UserWarning, match=r"top_p=0\.9"):
        make(student, teacher, char_tokenizer, config)


@pytest.mark.parametrize(
    ("row", "config", "message"),
    [
        ({"completion_ids": [5]}, CONFIG, "row 0 has no prompt"),
        ({"prompt_ids": []}, CONFIG, "row 0 has no prompt"),
        ({"prompt_ids": [5]}, SUPERVISED, "row 0 has no completion"),
        ({"prompt_ids": [5] * 124}, CONFIG, r"124 prompt tokens and up to 6.*read 128 in all"),
        ({"prompt_ids": [5, 48]}, CONFIG, r"token 48; the models share 0\.\.46"),
    ],
)
def test_unsuitable_rows_are_errors_before_any_work(
    student, teacher, char_tokenizer, row, config, message
):
    distiller = make(student, teacher, char_tokenizer, config)
    with pytest.raises(ValueError, match=message):
        distiller.fit([row], show_progress=False)
    assert distiller.num_steps == 0


def test_long_prompts_are_cut_on_the_left_if_asked(student, teacher, char_tokenizer):
    config = dataclasses.replace(CONFIG, max_prompt_tokens=3)
    distiller = make(student, teacher, char_tokenizer, config)
    distiller.step([{"prompt_ids": list(range(3, 40))}])
    assert distiller._writer._samplers["student"].calls[0][0] == [[37, 38, 39]]


def test_a_prompt_of_the_wrong_kind_is_an_error(student, teacher, char_tokenizer):
    with pytest.raises(TypeError, match='Token ids go under "prompt_ids"'):
        make(student, teacher, char_tokenizer).step([{"prompt": [3, 4]}])


def test_an_empty_data_set_is_an_error(student, teacher, char_tokenizer):
    with pytest.raises(ValueError, match="dataset is empty"):
        make(student, teacher, char_tokenizer).fit([])


def test_an_accelerator_can_be_passed_in(student, teacher, char_tokenizer):
    accelerator = Accelerator()
    distiller = make(student, teacher, char_tokenizer, accelerator=accelerator)
    assert distiller.accelerator is accelerator


@pytest.fixture
def bf16_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_keeps_the_loss_near_that_of_full_precision(
    make_llama, teacher, char_tokenizer, bf16_accelerator
):
    student = make_llama()
    expected = by_hand(student, teacher, ROWS[0], kind="jsd").mean().item()
    mixed = make(student, teacher, char_tokenizer, SUPERVISED, accelerator=bf16_accelerator)
    assert mixed.step(ROWS[:1])["loss"] == pytest.approx(expected, rel=0.05)
    assert all(p.dtype == torch.float32 for p in student.parameters())
    on_policy = dataclasses.replace(CONFIG, num_steps=2)
    fresh = make(make_llama(), teacher, char_tokenizer, on_policy, accelerator=bf16_accelerator)
    assert math.isfinite(fresh.fit(ROWS, show_progress=False).metrics["loss"])
