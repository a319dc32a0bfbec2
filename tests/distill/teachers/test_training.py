"""The teachers in a Distiller: what a local model teaches, a cache and a server teach as well."""

import copy
import dataclasses
import hashlib

import pytest
import torch
from model_server import ModelServer
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from selftrain.decoding import SamplingParams
from selftrain.distill import DistillConfig, Distiller
from selftrain.distill.teachers import (
    CachedTeacher,
    CallableTeacher,
    EMATeacher,
    EndpointTeacher,
    encode_rows,
    write_teacher_cache,
)
from selftrain.training import OptimConfig
from selftrain.training.batch import predicting_steps
from selftrain.training.heads import Scorer
from selftrain.training.targets import dense_logits

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

ROWS = [
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": "a, b,", "completion": " c, d"},
    {"prompt": "1 2 3", "completion": " 4 5 6", "weight": 2.0},
]
ON_POLICY = DistillConfig(
    divergence="forward_kl",
    num_steps=3,
    batch_size=3,
    micro_batch_size=2,
    log_every=1,
    sampling=SamplingParams(max_new_tokens=5),
    optim=OptimConfig(learning_rate=1e-2),
)
SUPERVISED = dataclasses.replace(ON_POLICY, on_policy_fraction=0.0)


def fit(student, teacher, tokenizer, config):
    """Train, and return every step's loss and gradient norm."""
    report = Distiller(student, teacher, tokenizer, config).fit(ROWS, show_progress=False)
    return [row[name] for row in report.history for name in ("loss", "grad_norm")]


def checksum(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def adapted(make_llama):
    return get_peft_model(
        make_llama(seed=3, sharpness=4.0),
        LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "down_proj"]),
    )


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_a_cache_of_hidden_states_trains_as_its_teacher_does(
    make_llama, teacher, char_tokenizer, tmp_path, divergence
):
    config = dataclasses.replace(SUPERVISED, divergence=divergence)
    expected = fit(make_llama(), teacher, char_tokenizer, config)
    student = make_llama()
    rows = encode_rows(ROWS, char_tokenizer, student=student)
    write_teacher_cache(teacher, rows, tmp_path, show_progress=False)
    found = fit(student, CachedTeacher(tmp_path), char_tokenizer, config)
    assert len(found) == 2 * 3
    assert found == pytest.approx(expected, rel=1e-3)


def test_an_encoder_decoders_cache_trains_as_its_teacher_does(make_model, char_tokenizer, tmp_path):
    teacher = make_model("t5", sharpness=2.0, num_decoder_layers=3).requires_grad_(False)
    expected = fit(make_model("t5"), teacher, char_tokenizer, SUPERVISED)
    student = make_model("t5")
    rows = encode_rows(ROWS, char_tokenizer, student=student)
    cached = write_teacher_cache(teacher, rows, tmp_path, show_progress=False)
    found = fit(student, cached, char_tokenizer, SUPERVISED)
    assert len(found) == 2 * 3
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_server_that_lists_every_token_trains_as_its_model_does(
    make_llama, teacher, char_tokenizer
):
    expected = fit(make_llama(), teacher, char_tokenizer, ON_POLICY)
    with (
        ModelServer(teacher) as server,
        EndpointTeacher(server.url, "tiny", top_k=teacher.config.vocab_size) as asking,
    ):
        found = fit(make_llama(), asking, char_tokenizer, ON_POLICY)
    assert len(found) == 2 * 3
    assert found == pytest.approx(expected, rel=1e-3)


def test_text_of_the_student_is_not_in_a_cache(make_llama, teacher, char_tokenizer, tmp_path):
    student = make_llama()
    rows = encode_rows(ROWS, char_tokenizer, student=student)
    cached = write_teacher_cache(
        teacher, rows, tmp_path, kind="top_k", top_k=4, show_progress=False
    )
    with pytest.raises(ValueError, match=r"not among the 3 rows.*on_policy_fraction=0"):
        fit(student, cached, char_tokenizer, ON_POLICY)


def test_a_student_without_trained_adapters_has_nothing_to_learn_from_its_base(
    adapted, char_tokenizer
):
    metrics = Distiller(adapted, None, char_tokenizer, SUPERVISED).evaluate(ROWS)
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["acceptance"] == pytest.approx(1.0, abs=1e-5)


def test_its_base_pulls_a_student_back_and_is_itself_untouched(adapted, char_tokenizer):
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    frozen = [p for p in adapted.parameters() if not p.requires_grad]
    trained = [p for p in adapted.parameters() if p.requires_grad]
    before = checksum(frozen), checksum(trained)
    config = dataclasses.replace(ON_POLICY, num_steps=60)
    distiller = Distiller(adapted, None, char_tokenizer, config)
    first = distiller.evaluate(ROWS)["loss"]
    distiller.fit(ROWS, show_progress=False)
    assert distiller.evaluate(ROWS)["loss"] < 0.5 * first
    assert checksum(frozen) == before[0]
    assert checksum(trained) != before[1]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in trained)


def test_a_prompt_tuned_student_is_scored_at_its_own_tokens(make_llama, batch):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    student = get_peft_model(make_llama(sharpness=4.0), config).eval()
    expected = student(**batch.inputs).logits[:, 3:].flatten(0, 1)
    width = batch.inputs["input_ids"].shape[1]
    places = [
        i * width + step
        for i, row in enumerate(batch.token_rows)
        for step in predicting_steps(row, is_encoder_decoder=False)
    ]
    found = dense_logits(Scorer(student)(student, batch))
    torch.testing.assert_close(found, expected[places])


@pytest.mark.parametrize("kind", ["model", "function", "average"])
def test_nothing_leaks_into_a_teacher(make_llama, teacher, char_tokenizer, kind):
    student = make_llama()
    if kind == "average":
        given = EMATeacher(student, decay=1.0)
        watched = given.average.model
    else:
        watched = copy.deepcopy(teacher).train()
        watched.model.layers[0].eval()

        def fn(input_ids, attention_mask, positions):
            out = watched(input_ids=input_ids, attention_mask=attention_mask)
            return out.logits.flatten(0, 1)[positions]

        given = CallableTeacher(fn) if kind == "function" else watched
    before = checksum(watched.state_dict().values())
    flags = [module.training for module in watched.modules()]
    fit(student, given, char_tokenizer, ON_POLICY)
    assert checksum(watched.state_dict().values()) == before
    assert all(p.grad is None for p in watched.parameters())
    if kind == "function":
        assert [module.training for module in watched.modules()] == flags
    else:
        assert not any(module.training for module in watched.modules())
