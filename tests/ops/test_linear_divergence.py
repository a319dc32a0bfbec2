import math
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from selftrain.ops import (
    DIVERGENCES,
    Head,
    divergence,
    linear_cross_entropy,
    linear_divergence,
)
from selftrain.ops._linear_loss import chunk_size

# Values of every kind, and those of beta where another form takes over.
CASES = [
    *((kind, {}) for kind in DIVERGENCES),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.999}),
    ("jsd", {"beta": 0.3, "scale": "unit"}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0, "scale": "unit"}),
]
NAMES = ["loss", "acceptance", "top1_agreement", "student_entropy", "teacher_entropy"]
INF = float("inf")


class Problem:
    """Two models' hidden states and heads, and a weight for each token."""

    def __init__(
        self,
        num=5,
        vocab=11,
        *,
        dtype=torch.float64,
        bias=True,
        teacher_vocab=None,
        features=(4, 6),
        noise=None,
        seed=0,
        **map_options,
    ):
        rng = torch.Generator().manual_seed(seed)

        def randn(*shape, scale=1.0):
            return (scale * torch.randn(*shape, generator=rng, dtype=torch.float64)).to(dtype)

        student_features, teacher_features = features
        self.weights = torch.rand(num, generator=rng, dtype=torch.float64).add(0.1).to(dtype)
        self.hidden, self.weight = randn(num, student_features), randn(vocab, student_features)
        self.bias = randn(vocab) if bias else None
        self.teacher_hidden = randn(num, teacher_features)
        teacher_weight = randn(teacher_vocab or vocab, teacher_features)
        if noise is not None:  # a teacher near the student
            self.teacher_hidden = self.hidden + randn(*self.hidden.shape, scale=noise)
            teacher_weight = self.weight.clone()
        self.teacher = Head(teacher_weight, randn(len(teacher_weight)) if bias else None)
        self.map_options = map_options

    def leaves(self, dtype=None):
        leaves = [self.hidden, self.weight] + ([] if self.bias is None else [self.bias])
        return [x.detach().clone().to(dtype or x.dtype).requires_grad_() for x in leaves]

    def head(self, weight, bias=None):
        return Head(weight, bias, **self.map_options)

    def fused(self, hidden, *head, **options):
        return linear_divergence(
            hidden, self.head(*head), self.teacher_hidden, self.teacher, self.weights, **options
        )

    def logits(self, hidden, weight, bias=None, *, scale=1.0, softcap=None):
        y = hidden @ weight.T if bias is None else hidden @ weight.T + bias
        y = scale * y
        return y if softcap is None else softcap * torch.tanh(y / softcap)

    def materialised(self, hidden, *head, **options):
        """The loss from full logits, differentiated automatically up to them."""
        dtype = hidden.dtype
        teacher = [x.to(dtype) for x in (self.teacher.weight, self.teacher.bias) if x is not None]
        student_logits = self.logits(hidden, *head, **self.map_options)
        teacher_logits = self.logits(self.teacher_hidden.to(dtype), *teacher)
        vocab = min(student_logits.shape[1], teacher_logits.shape[1])
        values = divergence(student_logits[:, :vocab], teacher_logits[:, :vocab], **options)
        live = self.weights != 0
        return (values[live] * self.weights[live].to(dtype)).sum(), values


def loss_and_grads(function, leaves, **options):
    result = function(*leaves, **options)
    loss = result[0] if isinstance(result, tuple) else result.loss
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_same(got, want, **tolerance):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


EXACT = {"rtol": 1e-12, "atol": 1e-14}


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.7, None), (1.3, 2.5)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_loss_and_gradients_equal_those_of_full_logits(
    kind, options, bias, scale, softcap, temperature
):
    problem = Problem(bias=bias, scale=scale, softcap=softcap)
    options = {"kind": kind, "temperature": temperature, **options}
    got = loss_and_grads(problem.fused, problem.leaves(), memory_budget=2 * 11 * 16, **options)
    want = loss_and_grads(problem.materialised, problem.leaves(), **options)
    assert_same(got, want, **EXACT)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_it_passes_gradcheck(kind, options, bias, softcap, temperature):
    problem = Problem(2, 4, features=(2, 3), bias=bias, scale=0.8, softcap=softcap)
    assert gradcheck(problem, kind=kind, temperature=temperature, fast_mode=True, **options)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_each_element_passes_gradcheck(kind):
    assert gradcheck(Problem(2, 4, features=(2, 3), scale=0.8, softcap=3.0), kind=kind)


def gradcheck(problem, fast_mode=False, **options):
    def loss(*leaves):
        return problem.fused(*leaves, **options).loss

    return torch.autograd.gradcheck(loss, problem.leaves(), fast_mode=fast_mode)


@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(1, 3000),
    num=st.integers(0, 13),
    kind=st.sampled_from(DIVERGENCES),
    seed=st.integers(0, 1000),
)
def test_any_memory_budget_gives_the_same(budget, num, kind, seed):
    problem = Problem(num, seed=seed)
    got = loss_and_grads(problem.fused, problem.leaves(), kind=kind, memory_budget=budget)
    want = loss_and_grads(problem.materialised, problem.leaves(), kind=kind)
    assert_same(got, want, **EXACT)


@pytest.mark.parametrize("num", [1, 67, 193, 300])
def test_chunks_of_unequal_size_give_the_same_in_float32(num):
    problem = Problem(num, 200, dtype=torch.float32)
    budget = 64 * 8 * 200  # chunks of 64 rows
    got = loss_and_grads(problem.fused, problem.leaves(), memory_budget=budget)
    want = loss_and_grads(problem.materialised, problem.leaves(torch.float64))
    assert_same(got, [x.float() for x in want], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_no_tokens_give_zero_and_a_connected_graph(kind):
    problem = Problem(0)
    result = problem.fused(*(leaves := problem.leaves()), kind=kind)
    assert result.loss == 0
    assert all(value.shape == (0,) for value in result.values.values())
    assert all((grad == 0).all() for grad in torch.autograd.grad(result.loss, leaves))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_all_weights_zero_give_zero_and_a_connected_graph(kind):
    problem = Problem()
    problem.weights.zero_()
    leaves = problem.leaves()
    result = problem.fused(*leaves, kind=kind)
    assert result.loss == 0
    assert all((value == 0).all() for value in result.values.values())
    for grad, leaf in zip(torch.autograd.grad(result.loss, leaves), leaves, strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("poison", [float("nan"), INF])
def test_what_rows_of_weight_zero_hold_does_not_matter(kind, poison):
    problem = Problem()
    problem.weights[1] = problem.weights[4] = 0
    clean = problem.leaves()
    want = [
        *loss_and_grads(problem.fused, clean, kind=kind),
        *problem.fused(*clean).values.values(),
    ]
    problem.hidden[1], problem.teacher_hidden[4] = poison, poison
    dirty = problem.leaves()
    got = [*loss_and_grads(problem.fused, dirty, kind=kind), *problem.fused(*dirty).values.values()]
    assert_same(got, want, rtol=0, atol=0)
    assert (got[1][1] == 0).all()


def test_nan_in_a_row_that_counts_is_not_hidden():
    problem = Problem()
    problem.hidden[1, 0] = float("nan")
    assert problem.fused(*problem.leaves()).loss.isnan()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_backward_pass_scales_by_its_upstream_gradient(kind):
    problem = Problem()
    leaves = problem.leaves()
    loss = problem.fused(*leaves, kind=kind).loss
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    assert_same(thrice, [3 * grad for grad in once], **EXACT)
    # What the first pass returned must not be what the second one starts from.
    for grad in once:
        grad.zero_()
    assert_same([3 * x for x in torch.autograd.grad(loss, leaves)], thrice, **EXACT)


def test_values_are_measures_of_the_two_laws():
    problem = Problem(40, scale=0.7, softcap=4.0)
    problem.teacher.weight[:, :4] += problem.weight  # some of the best tokens agree
    problem.teacher_hidden[:, :4] += problem.hidden
    leaves = problem.leaves()
    values = problem.fused(*leaves, kind="reverse_kl", temperature=1.5).values
    q = torch.softmax(problem.logits(*leaves, **problem.map_options) / 1.5, -1)
    teacher = problem.logits(problem.teacher_hidden, problem.teacher.weight, problem.teacher.bias)
    p = torch.softmax(teacher / 1.5, -1)
    assert list(values) == NAMES
    assert not any(value.requires_grad for value in values.values())
    want = {
        "loss": (q * (q / p).log()).sum(-1),
        "acceptance": torch.minimum(p, q).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double(),
        "student_entropy": -(q * q.log()).sum(-1),
        "teacher_entropy": -(p * p.log()).sum(-1),
    }
    for name in NAMES:
        torch.testing.assert_close(values[name], want[name], rtol=1e-12, atol=1e-13)
    assert 0 < want["top1_agreement"].mean() < 1


def test_without_measures_only_the_loss_is_left_and_it_is_the_same():
    problem = Problem()
    full, bare = (problem.fused(*problem.leaves(), measure=measure) for measure in (True, False))
    assert list(bare.values) == ["loss"]
    torch.testing.assert_close(bare.loss, full.loss, rtol=0, atol=0)


def test_a_frozen_head_gets_no_gradient_and_costs_no_product():
    problem = Problem(300, 128, dtype=torch.float32, bias=False)
    hidden, weight = problem.leaves()
    result = problem.fused(hidden, weight.detach(), memory_budget=64 * 8 * 128)
    (grad,) = torch.autograd.grad(result.loss, [hidden])
    want = loss_and_grads(problem.materialised, [hidden, weight])[1]
    torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)
    assert products(lambda: problem.fused(hidden, weight.detach())) == 3
    assert products(lambda: problem.fused(hidden, weight)) == 4


def test_without_gradients_only_the_two_projections_are_computed():
    problem = Problem(bias=False)
    with torch.no_grad():
        assert products(lambda: problem.fused(*problem.leaves())) == 2
        assert not problem.fused(*problem.leaves()).loss.requires_grad
    hidden, weight = (x.detach() for x in problem.leaves())
    assert products(lambda: problem.fused(hidden, weight)) == 2


class Watch(TorchDispatchMode):
    """Count matrix products, and note the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products += 1
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return out


def products(function):
    with Watch() as watch:
        function()
    return watch.products


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_no_temporary_is_larger_than_the_budget(kind):
    num, vocab, budget = 1024, 4096, 256 * 8 * 4096
    problem = Problem(num, vocab, dtype=torch.float32)
    leaves = problem.leaves()
    with Watch() as watch:
        loss = problem.fused(*leaves, kind=kind, memory_budget=budget).loss
        torch.autograd.grad(loss, leaves)
    # Two buffers share the budget, which is a quarter of what the logits of all tokens would need.
    assert watch.largest <= budget / 2
    assert 2 * num * vocab * 4 == 4 * budget


@given(num=st.integers(0, 5000), row_bytes=st.integers(1, 2**21), budget=st.integers(1, 2**30))
def test_chunks_are_few_even_and_within_the_budget(num, row_bytes, budget):
    size = chunk_size(num, row_bytes, budget, on_cpu=True)
    assert size == 1 or size * row_bytes <= budget
    assert size <= max(num, 1)
    if size < num:
        limit = budget // row_bytes
        step = 64 if limit >= 64 else 1
        assert size % step == 0
        # As few chunks as whole steps allow, none of them much smaller than the others.
        fewest = math.ceil(num / max(step, limit // step * step))
        assert math.ceil(num / size) <= fewest
        assert fewest * (size - step) < num


def test_nothing_of_the_size_of_the_logits_is_saved():
    problem = Problem(64, 96)
    saved = []
    leaves = problem.leaves()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        problem.fused(*leaves)
    assert sorted(x.numel() for x in saved) == sorted([1, *(x.numel() for x in leaves)])


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(("student", "teacher"), [(11, 14), (14, 11)])
def test_vocabularies_of_different_size_are_cut_to_the_shared_prefix(kind, student, teacher):
    problem = Problem(vocab=student, teacher_vocab=teacher)
    got = loss_and_grads(problem.fused, problem.leaves(), kind=kind)
    assert_same(got, loss_and_grads(problem.materialised, problem.leaves(), kind=kind), **EXACT)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_token_banned_in_both_models_changes_nothing(kind):
    problem = Problem(vocab=10)
    want = loss_and_grads(problem.fused, problem.leaves(), kind=kind)
    ban = torch.tensor([-INF], dtype=torch.float64)
    row = torch.ones(1, 4, dtype=torch.float64)
    problem.weight, problem.bias = torch.cat([problem.weight, row]), torch.cat([problem.bias, ban])
    teacher = problem.teacher
    row = torch.ones(1, 6, dtype=torch.float64)
    problem.teacher = Head(torch.cat([teacher.weight, row]), torch.cat([teacher.bias, ban]))
    loss, dh, dw, db = loss_and_grads(problem.fused, problem.leaves(), kind=kind)
    assert_same([loss, dh, dw[:-1], db[:-1]], want, **EXACT)
    assert (dw[-1] == 0).all()
    assert db[-1] == 0


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_law_equal_to_the_teachers_has_no_loss_and_no_gradient(kind):
    problem = Problem(20, 300, dtype=torch.float32, bias=False, noise=0.0)
    loss, *grads = loss_and_grads(problem.fused, problem.leaves(), kind=kind)
    assert abs(loss) < 1e-6 * problem.weights.sum()
    assert all(grad.abs().max() < 1e-5 for grad in grads)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_probabilities_below_the_smallest_float_keep_value_and_gradient(kind):
    problem = Problem(6, 50, dtype=torch.float32)
    problem.hidden *= 60  # the least likely tokens are some hundred nats away
    got = loss_and_grads(problem.fused, problem.leaves(), kind=kind)
    want = loss_and_grads(problem.materialised, problem.leaves(torch.float64), kind=kind)
    for one, other in zip(got, want, strict=True):
        # Logits of some hundreds are rounded by 2e-5, and gradients are differences of them.
        assert (one - other).norm() / other.norm() < 1e-3


@pytest.mark.parametrize(
    ("kind", "options"),
    # Not total variation, whose gradient jumps where the laws cross.
    [(k, {}) for k in DIVERGENCES if k != "total_variation"]
    + [("jsd", {"beta": beta}) for beta in (0.01, 0.9, 0.99)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_near_convergence_are_within_a_thousandth(kind, options, dtype):
    options = {"kind": kind, **options}
    problem = Problem(16, 8192, dtype=dtype, features=(64, 64), bias=False, noise=0.0, seed=3)
    problem.weight /= 4
    noise = torch.Generator().manual_seed(1)
    jitter = torch.randn(problem.weight.shape, generator=noise) / 1024
    problem.teacher = Head((problem.weight.float() + jitter).to(dtype))
    *_, values = problem.materialised(*problem.leaves(torch.float64), kind="jsd")
    assert 5e-6 < values.mean() < 2e-5  # the published accident: half of the gradient is lost here
    want = loss_and_grads(problem.materialised, problem.leaves(torch.float64), **options)
    # Leaves of float32 with the same content: what is tested is the loss, not a leaf's rounding.
    hidden, weight = problem.leaves(torch.float32)
    got = loss_and_grads(problem.fused, [hidden, weight], **options)
    for one, other in zip(got[1:], want[1:], strict=True):
        assert (one - other).norm() / other.norm() < 1e-3
    # And of their own type: the same, rounded once (scaled, for float16 ends at 6e-8).
    leaves = problem.leaves()
    own = torch.autograd.grad(4096 * problem.fused(*leaves, **options).loss, leaves)
    for one, other in zip(own, got[1:], strict=True):
        assert one.dtype == dtype
        assert (one.float() / 4096 - other).norm() / other.norm() < torch.finfo(dtype).eps


@pytest.mark.parametrize("num", [1, 5, 200])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.7, 2.0)])
def test_cross_entropy_equals_that_of_full_logits(num, scale, softcap):
    problem = Problem(num, 37, scale=scale, softcap=softcap)
    labels = torch.arange(num) % 37
    problem.weights[num // 2] = 0
    labels[num // 2] = -100

    def fused(hidden, *head):
        return linear_cross_entropy(
            hidden, problem.head(*head), labels, problem.weights, temperature=1.5, memory_budget=500
        )

    def materialised(*leaves):
        logits = problem.logits(*leaves, **problem.map_options) / 1.5
        values = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return (values * problem.weights).sum(), values

    got = loss_and_grads(fused, problem.leaves())
    assert_same(got, loss_and_grads(materialised, problem.leaves()), **EXACT)


def test_cross_entropy_measures_a_label_as_a_certain_teacher():
    problem = Problem(30, bias=True)
    leaves = problem.leaves()
    labels = torch.arange(30) % 11
    result = linear_cross_entropy(leaves[0], Head(*leaves[1:]), labels, problem.weights)
    q = torch.softmax(problem.logits(*leaves), -1)
    assert list(result.values) == NAMES[:-1]
    of_label = q.gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(result.values["loss"], -of_label.log())
    torch.testing.assert_close(result.values["acceptance"], of_label)
    torch.testing.assert_close(result.values["student_entropy"], -(q * q.log()).sum(-1))
    want = (q.argmax(1) == labels).double()
    torch.testing.assert_close(result.values["top1_agreement"], want)


def test_cross_entropy_is_forward_kl_from_a_certain_teacher():
    problem = Problem(7, bias=False)
    labels = torch.tensor([0, 3, 10, 2, 2, 5, 9])
    teacher = Head(torch.eye(11, dtype=torch.float64))
    onehot = 1e4 * torch.nn.functional.one_hot(labels, 11).double()
    leaves = problem.leaves()
    nll = linear_cross_entropy(leaves[0], Head(leaves[1]), labels, problem.weights)
    kl = linear_divergence(
        leaves[0], Head(leaves[1]), onehot, teacher, problem.weights, kind="forward_kl"
    )
    torch.testing.assert_close(nll.loss, kl.loss)


COMPILED = """
import warnings
import torch
from selftrain.ops import Head, linear_cross_entropy, linear_divergence

warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
rng = torch.Generator().manual_seed(0)
h, w, t, v = (torch.randn(*shape, generator=rng) for shape in ((5, 4), (9, 4), (5, 3), (9, 3)))
weights, labels = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]), torch.arange(5)


def run(h, w):
    result = linear_divergence(h, Head(w, softcap=2.0), t, Head(v), weights, kind="jsd")
    nll = linear_cross_entropy(h, Head(w), labels, weights, measure=False)
    return result.loss + nll.loss, result.values["acceptance"]


def everything(function):
    leaves = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    loss, acceptance = function(*leaves)
    return [loss, acceptance, *torch.autograd.grad(loss, leaves)]


for backend in ("eager", "aot_eager"):
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for one, other in zip(everything(compiled), everything(run), strict=True):
        torch.testing.assert_close(one, other)
"""


# In a process of its own: the run-time types of this one cannot be switched off in dataclasses.
def test_it_compiles_without_graph_breaks():
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILED], check=True, timeout=300)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "kl"}, "kind must be one of 'forward_kl'"),
        ({"scale": "half"}, "scale must be one of 'paper', 'unit'"),
        ({"beta": 1.5}, "beta must satisfy 0.0 <= beta <= 1.0, got 1.5"),
        ({"kind": "amari", "alpha": -0.1}, "alpha must satisfy"),
        ({"temperature": 0.0}, "temperature must satisfy 0.0 < temperature"),
        ({"memory_budget": 0}, "memory_budget must satisfy 1 <= memory_budget"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"weights": torch.ones(4)}, r"weights has shape \(4,\).*has 5 tokens"),
        ({"student_hidden": torch.ones(5, 3)}, r"student_hidden has shape \(5, 3\).*, 4\]"),
        ({"teacher_hidden": torch.ones(5, 2, 6)}, "teacher_hidden has shape.*flatten batch"),
        ({"teacher_hidden": torch.ones(3, 6)}, "teacher_hidden has 3 tokens"),
    ],
)
def test_bad_arguments_are_named(change, message):
    problem = Problem()
    arguments = {
        "student_hidden": problem.hidden,
        "student_head": Head(problem.weight),
        "teacher_hidden": problem.teacher_hidden,
        "teacher_head": problem.teacher,
        "weights": problem.weights,
    }
    with pytest.raises(ValueError, match=message):
        linear_divergence(**arguments | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.ones(3)}, r"weight must have shape \[vocab, features\], got \(3,\)"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "each of the 3 rows"),
        ({"weight": torch.ones(3, 2), "scale": 0.0}, "scale must satisfy 0.0 < scale"),
        ({"weight": torch.ones(3, 2), "softcap": -1.0}, "softcap must satisfy"),
    ],
)
def test_a_head_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Head(**options)


def test_labels_outside_the_vocabulary_are_refused_where_they_count():
    problem = Problem()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 11\).*got -100.*weight 0"):
        linear_cross_entropy(
            problem.hidden, Head(problem.weight), torch.full((5,), -100), problem.weights
        )
