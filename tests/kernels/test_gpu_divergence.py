"""On a GPU the kernels of divergences agree with float64, and never make the host wait."""

import pytest
import torch

pytest.importorskip("triton")
from selftrain.kernels.divergence import row_divergence
from selftrain.ops.divergence import DIVERGENCES, divergence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def logits(rows, vocab, *, seed, distance=1.0):
    rng = torch.Generator("cuda").manual_seed(seed)
    student = 3 * torch.randn(rows, vocab, generator=rng, device="cuda")
    teacher = student + distance * torch.randn(rows, vocab, generator=rng, device="cuda")
    return student, teacher, torch.rand(rows, generator=rng, device="cuda") + 0.1


def by_kernels(student, teacher, weights, kind, grad_dtype=torch.float32, temperature=1.0):
    return row_divergence(
        student,
        teacher,
        weights,
        kind=kind,
        parameter=0.3,
        factor=1.0,
        temperature=temperature,
        student_scale=1.0,
        student_softcap=None,
        teacher_scale=1.0,
        teacher_softcap=None,
        grad_dtype=grad_dtype,
        measure=True,
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 32000, 50257, 151936])
@pytest.mark.parametrize("distance", [1.0, 1e-2])
def test_gradients_are_those_of_float64(kind, vocab, distance):
    student, teacher, weights = logits(8, vocab, seed=vocab, distance=distance)
    leaf = student.double().requires_grad_()
    # The formula's parameter is the teacher's weight, alpha in "skew_reverse_kl" the student's.
    alpha = 0.7 if kind == "skew_reverse_kl" else 0.3
    value = divergence(leaf, teacher.double(), kind=kind, beta=0.3, alpha=alpha)
    (weights * value).sum().backward()
    values, grad = by_kernels(student, teacher, weights, kind)
    torch.testing.assert_close(values["loss"].double(), value.detach(), atol=1e-6, rtol=1e-4)
    norm = leaf.grad.norm()
    assert (grad.double() - leaf.grad).norm() <= 1e-3 * norm if norm > 0 else (grad == 0).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_equal_laws_have_no_gradient(kind):
    student, _, weights = logits(8, 32000, seed=1)
    values, grad = by_kernels(student, student.clone(), weights, kind, temperature=0.7)
    assert (values["loss"].abs() < 1e-6).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_are_rounded_to_bfloat16(kind):
    case = logits(4, 32000, seed=2)
    _, wide = by_kernels(*case, kind)
    _, grad = by_kernels(*case, kind, grad_dtype=torch.bfloat16)
    assert torch.equal(grad, wide.bfloat16())


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_two_runs_are_equal_to_the_bit(kind):
    case = logits(64, 50257, seed=3)
    values, grad = by_kernels(*case, kind)
    again, grad_again = by_kernels(*case, kind)
    assert torch.equal(grad, grad_again)
    assert all(torch.equal(values[name], again[name]) for name in values)


def test_rows_beyond_two_to_the_31_elements():
    student, teacher, weights = logits(2, 4096, seed=4)
    far = torch.empty(2**31 + 4160, device="cuda").as_strided((2, 4096), (2**31 + 64, 1))
    far.copy_(student)
    _, grad = by_kernels(far, teacher, weights, "jsd")
    assert torch.equal(grad, by_kernels(student, teacher, weights, "jsd")[1])


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_host_never_waits(kind):
    case = logits(4, 32000, seed=5)
    by_kernels(*case, kind)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        by_kernels(*case, kind)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_no_memory_of_the_size_of_the_vocabulary_but_the_gradient(kind):
    case = logits(64, 151936, seed=6)
    by_kernels(*case, kind, grad_dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    by_kernels(*case, kind, grad_dtype=torch.bfloat16)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 1.05 * 2 * case[0].numel()


def test_inductor_compiles_it_as_one_graph():
    case = logits(4, 32000, seed=7)

    def run(student, teacher, weights):
        return by_kernels(student, teacher, weights, "jsd", grad_dtype=torch.bfloat16)

    values, grad = torch.compile(run, fullgraph=True)(*case)
    want, want_grad = run(*case)
    assert torch.equal(grad, want_grad)
    torch.testing.assert_close(values["loss"], want["loss"])
