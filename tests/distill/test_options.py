"""Options of a run: schedules, text sampled ahead, teachers of every kind, the best student."""

import copy
import dataclasses

import peft
import pytest
import torch
from samplers import FixedSampler, RecordingSampler
from transformers import AutoModelForCausalLM

from selftrain._core.io import read_json
from selftrain.decoding import SamplingParams
from selftrain.distill import DistillConfig, Distiller
from selftrain.distill.teachers import CallableTeacher, EMATeacher
from selftrain.distill.texts import draw_sources
from selftrain.ops import divergence
from selftrain.training import OptimConfig

ROWS = [{"prompt_ids": [i, i + 1], "completion_ids": [i + 2, i + 3, 1]} for i in range(3, 15)]
TEXTS = {tuple(row["prompt_ids"]): row["completion_ids"] for row in ROWS}
CONFIG = DistillConfig(
    num_steps=8,
    batch_size=4,
    log_every=1,
    save_every=None,
    sampling=SamplingParams(max_new_tokens=5),
    optim=OptimConfig(learning_rate=1e-2),
)
SUPERVISED = dataclasses.replace(CONFIG, on_policy_fraction=0.0)
PEFT = "ignore:`is_gradient_checkpointing`:FutureWarning"


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(student, teacher, row, **options):
    """The mean divergence over one row's completion."""
    ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    where = slice(len(row["prompt_ids"]) - 1, -1)
    s, t = (model(ids).logits[0, where].double() for model in (student, teacher))
    return divergence(s, t, **options).mean().item()


class Stopped(Exception):
    """Stands for a process that was killed."""


def stop_at(step):
    """A judge that ends the run after so many evaluations."""
    calls = []

    def judge(student):
        calls.append(1)
        if len(calls) == step:
            raise Stopped
        return {}

    return judge


# What is minimised ------------------------------------------------------------------------------


def test_a_schedule_changes_what_is_minimised_at_its_share_of_the_steps(
    student, teacher, char_tokenizer
):
    config = dataclasses.replace(
        SUPERVISED,
        divergence="forward_kl",
        divergence_schedule=((0.5, "total_variation"), (0.75, "reverse_kl")),
        batch_size=1,
    )
    kinds = ["forward_kl"] * 4 + ["total_variation"] * 2 + ["reverse_kl"] * 2
    assert [config.objective_at(step) for step in range(8)] == kinds
    distiller = Distiller(student, teacher, char_tokenizer, config)
    for kind in kinds:
        expected = by_hand(student, teacher, ROWS[0], kind=kind)
        assert distiller.step(ROWS[:1])["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("skew_kl", {"alpha": 0.3}),
        ("skew_reverse_kl", {}),
        ("amari", {"alpha": 0.4}),
        ("jsd", {"beta": 0.2}),
    ],
)
def test_every_divergence_takes_its_parameter(student, teacher, char_tokenizer, kind, options):
    config = dataclasses.replace(SUPERVISED, divergence=kind, **options)
    expected = by_hand(student, teacher, ROWS[0], kind=kind, **options)
    metrics = Distiller(student, teacher, char_tokenizer, config).step(ROWS[:1])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_tokens_beyond_the_bound_count_as_much_and_teach_nothing(
    make_llama, teacher, char_tokenizer, fused
):
    found = {}
    for bound in (None, 1e9, 1e-9):
        config = dataclasses.replace(SUPERVISED, max_token_divergence=bound)
        student = make_llama()
        distiller = Distiller(student, teacher, char_tokenizer, config)
        if not fused:
            distiller._student_scores._access = None
        before = parameters(student)
        metrics = distiller.step(ROWS[:4])
        found[bound] = metrics, parameters(student), before
    assert torch.equal(found[None][1], found[1e9][1])
    assert found[1e9][0]["clipped"] == 0
    assert found[1e-9][0]["clipped"] == 1
    assert found[1e-9][0]["loss"] == pytest.approx(1e-9)
    assert torch.equal(found[1e-9][1], found[1e-9][2])


def test_the_one_shot_loss_and_dense_logits_teach_the_same(make_llama, teacher, char_tokenizer):
    histories = []
    for fused in (True, False):
        student = make_llama()
        distiller = Distiller(student, teacher, char_tokenizer, SUPERVISED)
        assert distiller._student_scores._access is not None
        if not fused:
            distiller._student_scores._access = None
        histories.append(distiller.fit(ROWS, show_progress=False).history)
    for ours, theirs in zip(*histories, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "grad_norm", "acceptance", "top1_agreement", "student_entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6)


def test_recomputed_activations_change_no_gradient(make_llama, teacher, char_tokenizer):
    norms = []
    for recompute in (False, True):
        config = dataclasses.replace(SUPERVISED, gradient_checkpointing=recompute)
        distiller = Distiller(make_llama(), teacher, char_tokenizer, config)
        norms.append(distiller.step(ROWS[:4])["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


# Where the text comes from ----------------------------------------------------------------------


def test_of_both_fixed_sources_each_gives_half_of_what_the_student_does_not():
    config = dataclasses.replace(
        CONFIG, on_policy_fraction=0.4, fixed_source="both", mixing="example"
    )
    assert config.sources == ("student", "dataset", "teacher")
    drawn = draw_sources(config, 0, 4000)
    # Three standard errors of 4,000 draws are below 0.024.
    for source, share in (("student", 0.4), ("dataset", 0.3), ("teacher", 0.3)):
        assert drawn.count(source) / 4000 == pytest.approx(share, abs=0.024)


def test_text_sampled_ahead_is_the_first_steps_students(make_llama, teacher, char_tokenizer):
    config = dataclasses.replace(CONFIG, generate_every=4)
    student = make_llama()
    sampler = RecordingSampler(student)
    distiller = Distiller(student, teacher, char_tokenizer, config, sampler=sampler)
    distiller.fit(ROWS, show_progress=False)
    assert [len(prompts) for prompts, *_ in sampler.calls] == [16, 16]
    one_by_one = RecordingSampler(make_llama())
    Distiller(one_by_one.inner.model, teacher, char_tokenizer, CONFIG, sampler=one_by_one).fit(
        ROWS, show_progress=False
    )
    seeds = [s for *_, seeds in sampler.calls for s in seeds]
    assert seeds == [s for *_, seeds in one_by_one.calls for s in seeds]


def test_a_run_killed_between_samplings_ends_as_one_left_alone(
    make_llama, teacher, char_tokenizer, tmp_path
):
    config = dataclasses.replace(CONFIG, generate_every=4, save_every=4, eval_every=1)
    whole = make_llama()
    Distiller(whole, teacher, char_tokenizer, config).fit(ROWS, show_progress=False)
    killed = make_llama()
    with pytest.raises(Stopped):
        Distiller(killed, teacher, char_tokenizer, config).fit(
            ROWS, output_dir=tmp_path, judge=stop_at(6), show_progress=False
        )
    resumed = make_llama(seed=5)
    Distiller(resumed, teacher, char_tokenizer, config).fit(
        ROWS, output_dir=tmp_path, show_progress=False
    )
    assert torch.equal(parameters(whole), parameters(resumed))


def test_the_age_of_text_sampled_ahead_is_logged(student, teacher, char_tokenizer):
    config = dataclasses.replace(CONFIG, generate_every=3)
    report = Distiller(student, teacher, char_tokenizer, config).fit(ROWS, show_progress=False)
    assert [row["staleness"] for row in report.history] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_text_sampled_ahead_in_a_run_that_broke_off_goes_to_no_other_rows(
    student, teacher, char_tokenizer
):
    config = dataclasses.replace(CONFIG, generate_every=4, eval_every=1)
    sampler = RecordingSampler(student)
    distiller = Distiller(student, teacher, char_tokenizer, config, sampler=sampler)
    with pytest.raises(Stopped):
        distiller.fit(ROWS, judge=stop_at(6), show_progress=False)
    others = [{"prompt_ids": [i]} for i in range(20, 24)]
    sampler.calls.clear()
    distiller.step(others)
    distiller.fit(others, show_progress=False)
    asked = [sorted(prompts) for prompts, *_ in sampler.calls]
    assert asked == [[row["prompt_ids"] for row in others]] * 2


class Server(RecordingSampler):
    """Samples with the weights it was last given."""

    def __init__(self, model):
        super().__init__(copy.deepcopy(model))
        self.paths = []

    def load_weights(self, path):
        self.paths.append(path)
        loaded = type(self.inner.model).from_pretrained(path)
        self.inner.model.load_state_dict(loaded.state_dict())


def test_a_sampler_elsewhere_gets_new_weights_whenever_it_samples(
    make_llama, teacher, char_tokenizer
):
    config = dataclasses.replace(CONFIG, generate_every=2)
    here, there = make_llama(), make_llama()
    server = Server(there)
    Distiller(here, teacher, char_tokenizer, config).fit(ROWS, show_progress=False)
    Distiller(there, teacher, char_tokenizer, config, sampler=server).fit(ROWS, show_progress=False)
    assert torch.equal(parameters(here), parameters(there))
    assert [path.name for path in server.paths] == [f"step-{n:08d}" for n in (0, 2, 4, 6)]
    assert not server.paths[0].exists()


def test_an_encoder_decoder_learns_from_its_own_text(make_model, char_tokenizer):
    options = {"vocab_size": len(char_tokenizer), "tie_word_embeddings": True}
    student, teacher = make_model("t5", **options), make_model("t5", sharpness=3.0, **options)
    config = dataclasses.replace(CONFIG, divergence="reverse_kl", num_steps=20)
    history = (
        Distiller(student, teacher.requires_grad_(False), char_tokenizer, config)
        .fit(ROWS, show_progress=False)
        .history
    )
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


# Teachers ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(PEFT)
def test_without_a_teacher_adapters_learn_from_their_own_base(make_llama, char_tokenizer):
    base = make_llama(sharpness=3.0)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    student = peft.get_peft_model(copy.deepcopy(base), lora)
    config = dataclasses.replace(SUPERVISED, divergence="forward_kl")
    expected = by_hand(student.eval(), base, ROWS[0], kind="forward_kl")
    distiller = Distiller(student, None, char_tokenizer, config)
    metrics = distiller.step(ROWS[:1])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    report = distiller.fit(ROWS, show_progress=False)
    assert report.history[-1]["loss"] < metrics["loss"]


@pytest.mark.filterwarnings(PEFT)
def test_adapters_learn_on_their_own_text(make_llama, teacher, char_tokenizer):
    lora = peft.LoraConfig(target_modules="all-linear", r=8)
    student = peft.get_peft_model(make_llama(sharpness=4.0), lora)
    config = dataclasses.replace(
        CONFIG, divergence="reverse_kl", num_steps=60, optim=OptimConfig(learning_rate=1e-2)
    )
    distiller = Distiller(student, teacher, char_tokenizer, config)
    frozen = student.base_model.model.model.embed_tokens.weight.clone()
    history = distiller.fit(ROWS, show_progress=False).history
    begun, ended = (sum(row["loss"] for row in part) for part in (history[:10], history[-10:]))
    assert ended < 0.5 * begun
    assert torch.equal(frozen, student.base_model.model.model.embed_tokens.weight)


@pytest.mark.filterwarnings(PEFT)
def test_saved_adapters_are_loaded_onto_their_base_and_go_on(
    make_llama, teacher, char_tokenizer, tmp_path
):
    make_llama(sharpness=3.0).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    student = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    distiller = Distiller(student, teacher, char_tokenizer, SUPERVISED)
    distiller.step(ROWS[:4])
    distiller.save(tmp_path / "saved")
    loaded = Distiller.load(tmp_path / "saved", teacher=teacher)
    assert isinstance(loaded.student, peft.PeftModel)
    assert loaded.step(ROWS[4:8])["loss"] == distiller.step(ROWS[4:8])["loss"]
    assert torch.equal(parameters(distiller.student), parameters(loaded.student))


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
@pytest.mark.filterwarnings(PEFT)
def test_adapters_whose_base_is_nowhere_are_an_error(make_llama, teacher, char_tokenizer, tmp_path):
    student = peft.get_peft_model(make_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    student.peft_config["default"].base_model_name_or_path = str(tmp_path / "nowhere")
    Distiller(student, teacher, char_tokenizer, SUPERVISED).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"adapters of '.*nowhere', which could not be loaded"):
        Distiller.load(tmp_path / "saved", teacher=teacher)


def test_a_saved_student_has_a_card(student, teacher, char_tokenizer, tmp_path):
    distiller = Distiller(student, teacher, char_tokenizer, SUPERVISED)
    loss = distiller.step(ROWS[:4])["loss"]
    distiller.save(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "- Teacher: `LlamaForCausalLM`" in card
    assert f"| `loss` | {loss:.4g} |" in card
    assert "Data:" not in card  # nobody said where the rows were from


def test_without_teacher_and_adapters_there_is_nothing_to_learn_from(student, char_tokenizer):
    with pytest.raises(TypeError, match="without adapters"):
        Distiller(student, None, char_tokenizer, CONFIG)
    with pytest.raises(TypeError, match=r"must be a model.*CallableTeacher"):
        Distiller(student, lambda ids: ids, char_tokenizer, CONFIG)


def test_a_teacher_known_by_all_its_tokens_teaches_as_the_model_does(
    make_llama, teacher, char_tokenizer
):
    def answer(input_ids, attention_mask, positions):
        logits = teacher(input_ids, attention_mask=attention_mask).logits.flatten(0, 1)[positions]
        best = logits.log_softmax(-1).topk(logits.shape[-1])
        return best.indices, best.values

    losses = [
        Distiller(make_llama(), asked, char_tokenizer, SUPERVISED).step(ROWS[:4])["loss"]
        for asked in (teacher, CallableTeacher(answer))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_law_known_in_part_cannot_be_made_flatter(student, char_tokenizer):
    def answer(input_ids, attention_mask, positions):
        return torch.zeros(len(positions), 1).long(), torch.full((len(positions), 1), -0.5)

    config = dataclasses.replace(SUPERVISED, loss_temperature=2.0)
    distiller = Distiller(student, CallableTeacher(answer), char_tokenizer, config)
    with pytest.raises(ValueError, match=r"loss_temperature=2\.0 needs the teacher's whole law"):
        distiller.step(ROWS[:1])


def test_text_of_a_teacher_that_is_no_model_needs_a_sampler(student, char_tokenizer):
    config = dataclasses.replace(CONFIG, on_policy_fraction=0.5, fixed_source="both")
    with pytest.raises(ValueError, match=r"fixed_source='both'.*teacher_sampler"):
        Distiller(student, CallableTeacher(print), char_tokenizer, config)


def test_an_average_of_the_student_teaches_and_is_restored_with_it(
    make_llama, char_tokenizer, tmp_path
):
    config = dataclasses.replace(SUPERVISED, save_every=2, eval_every=1)

    def distiller(seed=0):
        student = make_llama(seed=seed)
        return Distiller(student, EMATeacher(student, 0.5), char_tokenizer, config)

    whole = distiller()
    # At the beginning both are one, so that only a dropout-free student with noise would move.
    with torch.no_grad():
        whole.student.lm_head.weight.add_(0.1)
    state = copy.deepcopy(whole.student.state_dict())
    whole.fit(ROWS, show_progress=False)
    killed = distiller()
    killed.student.load_state_dict(state)
    with pytest.raises(Stopped):
        killed.fit(ROWS, output_dir=tmp_path, judge=stop_at(6), show_progress=False)
    resumed = distiller(seed=7)
    resumed.fit(ROWS, output_dir=tmp_path, show_progress=False)
    assert torch.equal(parameters(whole.student), parameters(resumed.student))
    assert len(list(tmp_path.glob("average-*.safetensors"))) <= 2


# The best student -------------------------------------------------------------------------------


def test_the_best_student_is_kept_and_a_worse_one_is_not(
    student, teacher, char_tokenizer, tmp_path
):
    config = dataclasses.replace(SUPERVISED, eval_every=2)
    values, seen = iter([0.2, 0.9, 0.4, 0.9]), []

    def judge(model):
        assert not model.training
        seen.append(parameters(model))
        return {"block_efficiency": next(values)}

    report = Distiller(student, teacher, char_tokenizer, config).fit(
        ROWS, output_dir=tmp_path, judge=judge, keep_best="block_efficiency", show_progress=False
    )
    kept = type(student).from_pretrained(tmp_path / "best")
    assert torch.equal(parameters(kept), seen[1])
    assert read_json(tmp_path / "best" / "best.json")["step"] == 4
    assert report.metrics["eval/block_efficiency"] == 0.9


def test_a_best_student_needs_a_measure_and_a_folder(student, teacher, char_tokenizer, tmp_path):
    distiller = Distiller(student, teacher, char_tokenizer, SUPERVISED)
    for options in ({"output_dir": tmp_path}, {"judge": lambda model: {}}):
        with pytest.raises(ValueError, match="needs an output_dir"):
            distiller.fit(ROWS, keep_best="loss", show_progress=False, **options)
    with pytest.raises(ValueError, match=r"keep_best='tau' is not measured; measured are alpha"):
        distiller.fit(
            ROWS,
            output_dir=tmp_path,
            judge=lambda model: {"alpha": 1.0},
            keep_best="tau",
            show_progress=False,
        )


def test_sampled_text_is_mocked_as_given(student, teacher, char_tokenizer):
    metrics = Distiller(student, teacher, char_tokenizer, CONFIG, sampler=FixedSampler(TEXTS)).step(
        ROWS[:4]
    )
    assert metrics["completion_length"] == 3


def test_a_process_without_rows_of_its_own_sends_weights_with_the_others(
    student, teacher, char_tokenizer
):
    sent = []
    distiller = Distiller(student, teacher, char_tokenizer, CONFIG)
    writer = distiller._writer
    writer._send_weights = sent.append
    for sources, ready in ((["dataset"], None), (["student"], {0: (3,)}), (["student"], None)):
        assert writer.complete({}, sources, ("sample", 0), num_steps=4, ready=ready) == {}
    assert sent == [4]
