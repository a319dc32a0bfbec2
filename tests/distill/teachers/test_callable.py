import pytest
import torch

from selftrain.distill.targets import TopKTargets
from selftrain.distill.teachers import CallableTeacher
from selftrain.ops.linear_divergence import Head
from selftrain.training.batch import scored_logits
from selftrain.training.targets import HiddenTargets, LogitTargets


def of_model(model):
    def fn(input_ids, attention_mask, positions, **extra):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, **extra).logits
        return logits.flatten(0, 1)[positions]

    return fn


def test_positions_are_the_places_that_predict_scored_tokens(teacher, batch):
    expected = scored_logits(teacher, batch, slices_logits=False)
    found = CallableTeacher(of_model(teacher)).targets(batch)
    assert torch.equal(found.logits, expected)


def test_an_encoder_decoders_function_gets_the_decoders_input(make_model, seq2seq_batch):
    model = make_model("t5")
    expected = scored_logits(model, seq2seq_batch, slices_logits=False)
    found = CallableTeacher(of_model(model)).targets(seq2seq_batch)
    torch.testing.assert_close(found.logits, expected)


def test_the_function_runs_without_gradients(make_llama, batch):
    found = CallableTeacher(of_model(make_llama())).targets(batch)
    assert not found.logits.requires_grad


def test_every_form_of_answer_becomes_targets(batch):
    n = len(batch.labels)
    ids, log_probs = torch.zeros(n, 2).long(), torch.full((n, 2), -1.0)
    hidden, head = torch.zeros(n, 3), Head(torch.zeros(5, 3))
    for answer, kind in (
        (torch.zeros(n, 5), LogitTargets),
        ((ids, log_probs), TopKTargets),
        ((hidden, head), HiddenTargets),
        (TopKTargets(ids, log_probs), TopKTargets),
    ):
        assert isinstance(CallableTeacher(lambda *_, a=answer: a).targets(batch), kind)


@pytest.mark.parametrize("answer", [None, {"logits": torch.zeros(2, 2)}, (1, 2), (torch.zeros(1),)])
def test_another_answer_is_refused_with_the_forms(batch, answer):
    with pytest.raises(TypeError, match=r"must return logits \[N, V\], a pair"):
        CallableTeacher(lambda *_: answer).targets(batch)


def test_an_answer_for_all_positions_is_refused(teacher, batch):
    def fn(input_ids, attention_mask, positions):
        return teacher(input_ids=input_ids, attention_mask=attention_mask).logits.flatten(0, 1)

    with pytest.raises(ValueError, match=r"35 rows for 13 positions.*\[positions\]"):
        CallableTeacher(fn).targets(batch)


@pytest.mark.parametrize("bad", [0.6, float("nan")])
def test_probabilities_in_place_of_log_probabilities_are_noticed(batch, bad):
    n = len(batch.labels)
    answer = (torch.arange(2).expand(n, 2), torch.full((n, 2), bad))
    with pytest.raises(ValueError, match="a mass is at most 1"):
        CallableTeacher(lambda *_: answer).targets(batch)


def test_an_answer_on_another_device_is_refused(batch):
    answer = torch.zeros(len(batch.labels), 4, device="meta")
    with pytest.raises(ValueError, match="on meta, but the batch is on cpu"):
        CallableTeacher(lambda *_: answer).targets(batch)


def test_something_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="fn must be a function"):
        CallableTeacher("gpt2")
