import copy
import hashlib

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from selftrain.distill.teachers import AdapterFreeTeacher
from selftrain.training.batch import scored_logits

# PEFT asks transformers by a name that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def base(make_llama):
    return make_llama(seed=3, sharpness=4.0)


@pytest.fixture
def adapted(base):
    """A LoRA student of a copy of the base, whose adapters do something, with dropout."""
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj", "down_proj"])
    student = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return student.train()


def state(model):
    """All that a teacher's pass might leave behind."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return (
        digest.hexdigest(),
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        [getattr(module, "disable_adapters", None) for module in model.modules()],
    )


def test_the_teacher_is_the_base(base, adapted, batch):
    expected = scored_logits(base, batch, slices_logits=False)
    found = AdapterFreeTeacher(adapted).targets(batch)
    logits = found.logits if hasattr(found, "logits") else found.hidden @ found.head.weight.T
    torch.testing.assert_close(logits, expected)
    own = scored_logits(adapted.eval(), batch, slices_logits=False)
    assert (own - expected).abs().max() > 0.1


def test_the_student_is_left_as_it_was(adapted, batch):
    next(p for n, p in adapted.named_parameters() if "lora_A" in n).requires_grad_(False)
    adapted.base_model.model.model.layers[0].eval()
    before = state(adapted)
    AdapterFreeTeacher(adapted).targets(batch)
    assert state(adapted) == before


def test_the_student_is_left_as_it_was_after_an_error(adapted, batch):
    teacher, before = AdapterFreeTeacher(adapted), state(adapted)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    layer = adapted.base_model.model.model.layers[1]
    own = layer.forward
    layer.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        teacher.targets(batch)
    layer.forward = own
    assert state(adapted) == before


def test_a_pass_between_a_students_forward_and_backward_does_not_change_its_gradient(
    adapted, batch
):
    def gradients(between):
        adapted.zero_grad()
        torch.manual_seed(0)
        loss = scored_logits(adapted, batch, slices_logits=False).logsumexp(-1).sum()
        between()
        loss.backward()
        return [p.grad.clone() for p in adapted.parameters() if p.requires_grad]

    teacher = AdapterFreeTeacher(adapted)
    alone = gradients(lambda: None)
    beside = gradients(lambda: teacher.targets(batch))
    assert alone
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


def test_a_student_whose_adapters_are_off_already_keeps_them_off(adapted, batch):
    with adapted.disable_adapter():
        before = state(adapted)
        AdapterFreeTeacher(adapted).targets(batch)
        assert state(adapted) == before


def test_a_prompt_tuned_students_base_is_without_its_prompt(base, batch):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    student = get_peft_model(copy.deepcopy(base), config)
    found = AdapterFreeTeacher(student).targets(batch)
    logits = found.logits if hasattr(found, "logits") else found.hidden @ found.head.weight.T
    torch.testing.assert_close(logits, scored_logits(base, batch, slices_logits=False))


def test_merged_adapters_are_refused(adapted, batch):
    teacher = AdapterFreeTeacher(adapted)
    adapted.merge_adapter()
    before = state(adapted)
    for ask in (lambda: teacher.targets(batch), lambda: AdapterFreeTeacher(adapted)):
        with pytest.raises(ValueError, match=r"merged into its base.*unmerge_adapter"):
            ask()
    assert state(adapted) == before


def test_a_student_without_adapters_is_refused():
    with pytest.raises(TypeError, match=r"Linear without adapters.*get_peft_model.*EMATeacher"):
        AdapterFreeTeacher(nn.Linear(1, 1))
