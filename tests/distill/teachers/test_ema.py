import hashlib

import pytest
import torch
from peft import LoraConfig, get_peft_model

from selftrain.distill.teachers import EMATeacher
from selftrain.training.batch import scored_logits

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def logits_of(targets):
    if hasattr(targets, "logits"):
        return targets.logits
    return targets.hidden @ targets.head.weight.T


def checksum(model):
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def step(model, batch, optimizer):
    """One step of a student towards uniform predictions; the teacher's pass comes first."""
    optimizer.zero_grad()
    scored_logits(model, batch, slices_logits=False).logsumexp(-1).mean().backward()
    optimizer.step()


def test_the_first_teacher_is_the_student(make_llama, batch):
    student = make_llama()
    expected = scored_logits(student, batch, slices_logits=False)
    torch.testing.assert_close(logits_of(EMATeacher(student).targets(batch)), expected)


def test_the_teacher_stays_behind_the_student(make_llama, batch):
    student = make_llama()
    teacher = EMATeacher(student, 0.9)
    first = logits_of(teacher.targets(batch))
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    for _ in range(3):
        step(student, batch, optimizer)
        teacher.update()
    own = scored_logits(student, batch, slices_logits=False).detach()
    between = logits_of(teacher.targets(batch))
    moved = (own - first).norm()
    assert 0 < (between - first).norm() < moved
    assert (between - own).norm() < moved


def test_teaching_leaves_teacher_and_student_as_they_were(make_llama, batch):
    student = make_llama().train()
    teacher = EMATeacher(student, 0.9)
    before = checksum(student), checksum(teacher.average.model)
    teacher.targets(batch)
    assert (checksum(student), checksum(teacher.average.model)) == before
    assert student.training
    assert not teacher.average.model.training
    assert all(p.grad is None for m in (student, teacher.average.model) for p in m.parameters())


def test_a_student_with_adapters_shares_its_base(make_llama, batch):
    student = get_peft_model(
        make_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    teacher = EMATeacher(student, 0.5)
    expected = scored_logits(student, batch, slices_logits=False)
    torch.testing.assert_close(logits_of(teacher.targets(batch)), expected)
    ours, theirs = dict(student.named_parameters()), dict(teacher.average.model.named_parameters())
    copied = {name for name in ours if ours[name] is not theirs[name]}
    assert copied == {name for name, p in ours.items() if p.requires_grad}
    assert all("lora" in name for name in copied)


def test_a_saved_teacher_is_restored(make_llama, batch, tmp_path):
    student, other = make_llama(), make_llama()
    teacher = EMATeacher(student, 0.9)
    step(student, batch, torch.optim.SGD(student.parameters(), lr=1.0))
    teacher.update()
    teacher.save(tmp_path / "ema.safetensors")
    restored = EMATeacher(other, 0.9)
    restored.load(tmp_path / "ema.safetensors")
    assert torch.equal(logits_of(restored.targets(batch)), logits_of(teacher.targets(batch)))
    assert restored.average.num_updates == 1
