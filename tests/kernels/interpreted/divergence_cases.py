"""Pairs of rows of logits, and what float64 makes of them."""

import torch

from selftrain.kernels.divergence import row_divergence

KINDS = {
    "forward_kl": 0.0,
    "reverse_kl": 0.0,
    "jsd": 0.3,
    "total_variation": 0.0,
    "skew_kl": 0.1,
    "skew_reverse_kl": 0.9,
    "amari": 0.6,
}
"""Each kind, with a parameter for it."""
PLAIN = {
    "temperature": 1.0,
    "factor": 1.0,
    "student_scale": 1.0,
    "student_softcap": None,
    "teacher_scale": 1.0,
    "teacher_softcap": None,
}


def logits(rows, vocab, *, seed=0, spread=2.0, distance=1.0):
    """Return a student's and a teacher's logits, and weights."""
    rng = torch.Generator().manual_seed(seed)
    student = spread * torch.randn(rows, vocab, generator=rng)
    teacher = student + distance * torch.randn(rows, vocab, generator=rng)
    return student, teacher, torch.rand(rows, generator=rng) + 0.1


def by_kernels(
    student, teacher, weights, kind, *, parameter=None, grad_dtype=torch.float32, **options
):
    """Call the kernels, plain unless said otherwise."""
    parameter = KINDS[kind] if parameter is None else parameter
    measure = options.pop("measure", True)
    options = {**PLAIN, **options}
    return row_divergence(
        student, teacher, weights, kind=kind, parameter=parameter, grad_dtype=grad_dtype,
        measure=measure, **options,
    )  # fmt: skip


def divergence(p, q, kind, a):
    """Return the divergence of each row by its definition, where all p and q are above 0."""
    m = a * p + (1 - a) * q
    terms = {
        "forward_kl": p * (p / q).log(),
        "reverse_kl": q * (q / p).log(),
        "jsd": a * p * (p / m).log() + (1 - a) * q * (q / m).log(),
        "total_variation": 0.5 * (p - q).abs(),
        "skew_kl": p * (p / m).log(),
        "skew_reverse_kl": q * (q / m).log(),
        "amari": (p**a * q ** (1 - a) - a * p - (1 - a) * q) / (a * (a - 1) if a else 1.0),
    }
    return terms[kind].sum(-1)


def by_definition(student, teacher, weights, kind, *, parameter=None, **options):
    """Return values and gradient in float64, by the definitions and automatic differentiation."""
    options = {**PLAIN, **options}
    parameter = KINDS[kind] if parameter is None else parameter

    def probs(raw, scale, softcap):
        raw = scale * raw
        capped = raw if softcap is None else softcap * torch.tanh(raw / softcap)
        return torch.softmax(capped / options["temperature"], -1)

    leaf = student.double().requires_grad_()
    q = probs(leaf, options["student_scale"], options["student_softcap"])
    p = probs(teacher.double(), options["teacher_scale"], options["teacher_softcap"])
    loss = options["factor"] * divergence(p, q, kind, parameter)
    (grad,) = torch.autograd.grad((weights.double() * loss).sum(), leaf)
    q = q.detach()
    values = {
        "loss": loss.detach(),
        "acceptance": torch.minimum(p, q).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double(),
        "student_entropy": -torch.special.xlogy(q, q).sum(-1),
        "teacher_entropy": -torch.special.xlogy(p, p).sum(-1),
    }
    return values, grad


def relative_error(got, want):
    """Return the relative L2 error; the error itself where there is nothing to compare with."""
    norm = want.norm()
    return float((got.double() - want).norm() / (norm if norm > 0 else 1.0))
