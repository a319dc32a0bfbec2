"""The divergences' kernels give values and gradients of the definitions, and bound their errors."""

import jaxtyping
import pytest
import torch
from divergence_cases import KINDS, PLAIN, by_definition, by_kernels, logits, relative_error

from selftrain.kernels import divergence
from selftrain.ops._row_divergence import row_divergence as eager
from selftrain.ops.divergence import DIVERGENCES
from selftrain.ops.linear_divergence import Head, linear_divergence

VALUES = ["loss", "acceptance", "top1_agreement", "student_entropy", "teacher_entropy"]
PARAMETRIC = ["jsd", "skew_kl", "skew_reverse_kl", "amari"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Let rows of a few hundred columns take two programs, the first of two blocks."""
    monkeypatch.setattr(divergence, "_BLOCK", 128)
    monkeypatch.setattr(divergence, "_MOST_SPLITS", 2)


@pytest.fixture
def without_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def check(student, teacher, weights, kind, *, tolerance=2e-6, **options):
    values, grad = by_kernels(student, teacher, weights, kind, **options)
    want, want_grad = by_definition(student, teacher, weights, kind, **options)
    assert list(values) == VALUES
    for name in VALUES:
        assert values[name].dtype == torch.float32
        torch.testing.assert_close(values[name].double(), want[name], atol=1e-6, rtol=tolerance)
    assert grad.dtype == torch.float32
    assert relative_error(grad, want_grad) < tolerance
    return values, grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [1, 127, 128, 129, 300])
@pytest.mark.usefixtures("small_blocks")
def test_values_and_gradients_are_those_of_the_definitions(kind, vocab):
    check(*logits(1, vocab, seed=vocab), kind)


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
@pytest.mark.parametrize("vocab", [2 * 2048 + 1, pytest.param(50257, marks=pytest.mark.slow)])
def test_rows_of_blocks_as_on_a_gpu(kind, vocab):
    check(*logits(1, vocab, seed=3), kind)


@pytest.mark.parametrize("kind", PARAMETRIC)
@pytest.mark.parametrize("parameter", [1e-4, 0.05, 0.5, 0.95, 0.9999])
def test_any_parameter(kind, parameter):
    case = logits(1, 300, seed=4)
    values, grad = by_kernels(*case, kind, parameter=parameter)
    want, want_grad = by_definition(*case, kind, parameter=parameter)
    # The skewed divergences at the end where the mixture is the other law are nearly 0.
    torch.testing.assert_close(values["loss"].double(), want["loss"], atol=1e-7, rtol=3e-6)
    assert relative_error(grad, want_grad) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "maps",
    [
        {"student_scale": 0.3, "temperature": 0.5},
        {"teacher_scale": 0.3, "teacher_softcap": 5.0, "temperature": 1.7},
        {"student_scale": 2.0, "student_softcap": 3.0, "factor": 2.5, "temperature": 0.7},
        {"student_softcap": 30.0, "teacher_scale": 1.5, "teacher_softcap": 4.0},
    ],
    ids=str,
)
def test_scales_soft_caps_and_temperatures(kind, maps):
    check(*logits(1, 200, seed=5), kind, tolerance=5e-6, **maps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [1e-2, 1e-3])
def test_values_and_gradients_keep_their_precision_near_convergence(kind, distance):
    """A distance of 1e-2 is a JSD of about 1e-5 a token, where rounded logits leave noise."""
    case = logits(1, 2000, seed=6, spread=3.0, distance=distance)
    values, grad = by_kernels(*case, kind)
    want, want_grad = by_definition(*case, kind)
    assert relative_error(grad, want_grad) < 1e-3
    torch.testing.assert_close(values["loss"].double(), want["loss"], atol=1e-9, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_laws_have_value_and_gradient_zero(kind):
    student, _, weights = logits(1, 500, seed=8)
    values, grad = by_kernels(student, student.clone(), weights, kind, temperature=0.7)
    assert (values["loss"] == 0).all()
    assert (grad == 0).all()
    torch.testing.assert_close(values["acceptance"], torch.ones(1), atol=1e-6, rtol=0)
    assert (values["top1_agreement"] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shifts_of_all_logits_change_nothing(kind):
    student, teacher, weights = logits(1, 300, seed=9)
    values, grad = by_kernels(student, teacher, weights, kind)
    moved, moved_grad = by_kernels(student + 64.0, teacher - 32.0, weights, kind)
    torch.testing.assert_close(moved["loss"], values["loss"], atol=1e-6, rtol=2e-5)
    assert relative_error(moved_grad, grad.double()) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_row_sum_to_zero(kind):
    _, grad = by_kernels(*logits(1, 700, seed=10), kind)
    assert (grad.sum(-1).abs() < 1e-6 * grad.abs().sum(-1)).all()


@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-11)])
def test_half_precision_gradients_are_the_float32_ones_rounded_once(kind, dtype, unit):
    """The interpreter truncates to bfloat16, where GPUs round and err by half as much."""
    case = logits(1, 130, seed=11)
    _, wide = by_kernels(*case, kind)
    _, grad = by_kernels(*case, kind, grad_dtype=dtype)
    assert grad.dtype == dtype
    # Plus half the smallest step of float16.
    assert ((grad.float() - wide).abs() <= unit * wide.abs() + 2.0**-25).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_banned_in_both_models_do_not_exist(kind):
    student, teacher, weights = logits(1, 300, seed=12)
    banned = torch.arange(300) % 3 == 0
    want, want_grad = by_definition(student[:, ~banned], teacher[:, ~banned], weights, kind)
    student[:, banned] = teacher[:, banned] = -torch.inf
    values, grad = by_kernels(student, teacher, weights, kind)
    for name in VALUES:
        torch.testing.assert_close(values[name].double(), want[name], atol=1e-6, rtol=2e-6)
    assert (grad[:, banned] == 0).all()
    assert relative_error(grad[:, ~banned], want_grad) < 2e-6


def one_sided(seed, banned_in):
    student, teacher, weights = logits(1, 96, seed=seed)
    (student if banned_in == "student" else teacher)[:, 5:20] = -torch.inf
    return student, teacher, weights


@pytest.mark.parametrize("banned_in", ["student", "teacher"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_banned_in_one_model_are_the_limit_of_unlikely_ones(kind, banned_in):
    """Logits of -300 are such: float64 has room for the square of their probabilities."""
    student, teacher, weights = one_sided(13, banned_in)
    values, grad = by_kernels(student, teacher, weights, kind)
    infinite = {"forward_kl": "student", "reverse_kl": "teacher"}.get(kind) == banned_in
    if infinite:
        assert (values["loss"] == torch.inf).all()
        if kind == "reverse_kl":
            return  # and it has no gradient
    limits = [x.masked_fill(x == -torch.inf, -300.0) for x in (student, teacher)]
    want, want_grad = by_definition(*limits, weights, kind)
    for name in VALUES[infinite:]:
        torch.testing.assert_close(values[name].double(), want[name], atol=1e-6, rtol=1e-5)
    assert relative_error(grad, want_grad) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_have_no_gradient_whatever_they_hold(kind):
    student, teacher, weights = logits(4, 60, seed=14)
    student[1], teacher[2], student[3, 5] = torch.nan, -torch.inf, torch.inf
    weights[1:] = 0.0
    values, grad = by_kernels(student, teacher, weights, kind)
    assert (grad[1:] == 0).all()
    want, want_grad = by_kernels(student[:1], teacher[:1], weights[:1], kind)
    assert torch.equal(grad[:1], want_grad)
    assert torch.equal(values["loss"][:1], want["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(kind):
    student, teacher, weights = logits(2, 100, seed=15)
    student[0, 7] = torch.nan
    values, grad = by_kernels(student, teacher, weights, kind)
    assert values["loss"].isnan().tolist() == [True, False]
    assert grad.isnan().all(-1).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["jsd", "forward_kl"])
def test_rows_may_lie_apart(kind):
    student, teacher, weights = logits(2, 200, seed=16)
    wide, other = torch.zeros(2, 333), torch.zeros(4, 250)
    wide[:, 60:260], other[::2, :200] = student, teacher
    values, grad = by_kernels(wide[:, 60:260], other[::2, :200], weights, kind)
    want, want_grad = by_kernels(student, teacher, weights, kind)
    assert torch.equal(grad, want_grad)
    assert all(torch.equal(values[name], want[name]) for name in VALUES)


@pytest.mark.parametrize("kind", ["jsd", "forward_kl"])
@pytest.mark.usefixtures("small_blocks")
def test_a_row_alone_is_as_in_a_batch_and_inputs_stay(kind):
    student, teacher, weights = logits(2, 300, seed=17)
    before = student.clone(), teacher.clone()
    values, grad = by_kernels(student, teacher, weights, kind)
    again, again_grad = by_kernels(student[1:2], teacher[1:2], weights[1:2], kind)
    assert torch.equal(grad[1:2], again_grad)
    assert all(torch.equal(values[name][1:2], again[name]) for name in VALUES)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradient_or_measures_the_rest_is_the_same(kind):
    case = logits(1, 129, seed=18)
    values, grad = by_kernels(*case, kind)
    bare, bare_grad = by_kernels(*case, kind, measure=False)
    assert list(bare) == ["loss"]
    assert torch.equal(bare["loss"], values["loss"])
    assert torch.equal(bare_grad, grad)
    only, none = by_kernels(*case, kind, grad_dtype=None)
    assert none is None
    assert all(torch.equal(only[name], values[name]) for name in VALUES)


@pytest.mark.usefixtures("small_blocks")
def test_ties_for_the_top_go_to_the_lowest_column_across_blocks():
    student, teacher = torch.zeros(2, 300), torch.zeros(2, 300)
    student[:, [70, 150]] = 1.0
    teacher[0, [70, 290]], teacher[1, [150, 290]] = 2.0, 2.0
    values, _ = by_kernels(student, teacher, torch.ones(2), "jsd", grad_dtype=None)
    assert values["top1_agreement"].tolist() == [1.0, 0.0]


def test_no_rows():
    values, grad = by_kernels(torch.empty(0, 40), torch.empty(0, 40), torch.empty(0), "jsd")
    assert [values[name].shape for name in VALUES] == [(0,)] * 5
    assert grad.shape == (0, 40)


def test_the_kinds_are_those_of_eager_code():
    assert divergence.KINDS == DIVERGENCES


@pytest.mark.parametrize("kind", KINDS)
def test_eager_code_agrees_given_the_same_arguments(kind):
    case = logits(1, 400, seed=19)
    options = {
        **PLAIN,
        "temperature": 1.3,
        "factor": 1.5,
        "student_softcap": 6.0,
        "teacher_scale": 0.5,
    }
    values, grad = by_kernels(*case, kind, **options)
    options |= {"kind": kind, "parameter": KINDS[kind]}
    want, want_grad = eager(
        *(x.clone() for x in case), grad_dtype=torch.float32, measure=True, **options
    )
    assert list(values) == list(want)
    for name in VALUES:
        torch.testing.assert_close(values[name], want[name], atol=1e-6, rtol=1e-5)
    assert relative_error(grad, want_grad.double()) < 1e-5


@pytest.mark.usefixtures("without_shape_checks")
def test_the_fused_loss_is_the_same_with_kernels():
    rng = torch.Generator().manual_seed(23)
    hidden, weight = torch.randn(5, 8, generator=rng), torch.randn(70, 8, generator=rng)
    other_hidden, other_weight = torch.randn(5, 6, generator=rng), torch.randn(70, 6, generator=rng)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])
    found = {}
    for backend in ("eager", "triton"):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = linear_divergence(
            leaves[0], Head(leaves[1], softcap=9.0), other_hidden, Head(other_weight), weights,
            kind="jsd", beta=0.3, memory_budget=70 * 8 * 2, backend=backend,
        )  # fmt: skip
        loss.loss.backward()
        found[backend] = [loss.loss.detach(), *loss.values.values(), *(x.grad for x in leaves)]
    for got, want in zip(found["triton"], found["eager"], strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_rows_beyond_two_to_the_31_elements():
    """Only the pages that are read take memory: eight columns of rows 8 GiB apart."""
    small = logits(2, 8, seed=20)
    far = torch.empty_strided((2, 8), (2**31 + 64, 1))
    far.copy_(small[0])
    _, grad = by_kernels(far, small[1], small[2], "jsd")
    assert torch.equal(grad, by_kernels(*small, "jsd")[1])


def test_operator_passes_opcheck():
    student, teacher, weights = logits(1, 20, seed=21)
    bends = (1.0, 1.0, False, 0.2, 5.0, True)
    for kind, grad_dtype, measure in (
        ("jsd", torch.bfloat16, True),
        ("forward_kl", None, False),
    ):
        arguments = (student, teacher, weights, kind, 0.3, 1.0, *bends, grad_dtype, measure)
        torch.library.opcheck(divergence.divergence_sweeps, arguments)


@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_as_one_graph():
    case = logits(1, 50, seed=22)

    def run(student, teacher, weights):
        return by_kernels(student, teacher, weights, "jsd", grad_dtype=torch.bfloat16)

    values, grad = torch.compile(run, fullgraph=True, backend="aot_eager")(*case)
    want, want_grad = run(*case)
    assert torch.equal(grad, want_grad)
    assert all(torch.equal(values[name], want[name]) for name in VALUES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "tvd"}, "kind must be one of 'forward_kl'"),
        ({"parameter": 1.0}, "parameter must satisfy"),
        ({"temperature": 0.0}, "temperature must satisfy"),
        ({"grad_dtype": torch.float64}, "grad_dtype must be one of"),
        ({"student_CV": torch.zeros(2, 6).T}, "columns of a row must be adjacent"),
        ({"teacher_CV": torch.zeros(6, 2).double()}, "teacher_CV must be float32"),
        ({"teacher_CV": torch.zeros(6, 3)}, r"student_CV has shape \(6, 2\)"),
        ({"weights_C": torch.ones(1)}, r"weights_C \(1,\)"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(change, said):
    arguments = {
        "student_CV": torch.zeros(6, 2),
        "teacher_CV": torch.zeros(6, 2),
        "weights_C": torch.ones(6),
        "kind": "jsd",
        "parameter": 0.5,
        "grad_dtype": None,
        "measure": False,
        **PLAIN,
        **change,
    }
    with pytest.raises(ValueError, match=said):
        divergence.row_divergence(**arguments)
