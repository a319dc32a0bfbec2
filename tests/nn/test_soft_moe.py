import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selftrain.nn import SoftMoE


def make(dim=3, num_experts=2, slots=2, *, out=4, normalize=False, seed=0):
    torch.manual_seed(seed)
    moe = SoftMoE(
        dim,
        num_experts,
        lambda: nn.Sequential(nn.Linear(dim, out), nn.Tanh()),
        slots_per_expert=slots,
        normalize=normalize,
    )
    return moe.double()


def by_loops(moe: SoftMoE, tokens: torch.Tensor) -> torch.Tensor:
    """The formulas of the paper, one token, expert and slot at a time."""
    num_experts, slots = moe.phi.shape[1:]
    rows = []
    for sample in tokens:
        logits = {}
        for t, token in enumerate(sample):
            for e in range(num_experts):
                for s in range(slots):
                    phi = moe.phi[:, e, s]
                    if moe.scale is None:
                        logits[t, e, s] = (token * phi).sum()
                    else:
                        cosine = (token * phi).sum() / (token.norm() * phi.norm())
                        logits[t, e, s] = moe.scale * cosine
        outputs = {}
        for e, expert in enumerate(moe.experts):
            for s in range(slots):
                over_tokens = sum(math.exp(logits[t, e, s]) for t in range(len(sample)))
                slot = sum(
                    math.exp(logits[t, e, s]) / over_tokens * token
                    for t, token in enumerate(sample)
                )
                outputs[e, s] = expert(slot)
        for t in range(len(sample)):
            over_slots = sum(math.exp(logits[t, e, s]) for e, s in outputs)
            rows.append(
                sum(math.exp(logits[t, e, s]) / over_slots * y for (e, s), y in outputs.items())
            )
    return torch.stack(rows).view(*tokens.shape[:2], -1)


@settings(deadline=None, max_examples=25)
@given(
    num_tokens=st.integers(1, 5),
    num_experts=st.integers(1, 4),
    slots=st.integers(1, 3),
    normalize=st.booleans(),
)
def test_it_equals_the_formulas_by_loops(num_tokens, num_experts, slots, normalize):
    moe = make(3, num_experts, slots, normalize=normalize)
    if moe.scale is not None:
        nn.init.constant_(moe.scale, 1.7)
    tokens = torch.randn(2, num_tokens, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(moe(tokens), by_loops(moe, tokens))


def test_one_expert_with_one_slot_gives_every_token_the_same():
    moe = make(num_experts=1, slots=1)
    tokens = torch.randn(2, 5, 3, dtype=torch.float64)
    weights = (tokens @ moe.phi[:, 0, 0]).softmax(1)
    want = moe.experts[0](torch.einsum("bt,btd->bd", weights, tokens))
    torch.testing.assert_close(moe(tokens), want[:, None].expand(2, 5, 4))


def test_without_preferences_all_is_a_mean():
    moe = make(num_experts=3)
    nn.init.zeros_(moe.phi)
    tokens = torch.randn(2, 5, 3, dtype=torch.float64)
    want = torch.stack([expert(tokens.mean(1)) for expert in moe.experts]).mean(0)
    torch.testing.assert_close(moe(tokens), want[:, None].expand(2, 5, 4))


def test_permuted_tokens_give_permuted_outputs():
    moe, order = make(), torch.tensor([3, 0, 4, 1, 2])
    tokens = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(moe(tokens[:, order]), moe(tokens)[:, order])


def test_the_order_of_experts_does_not_matter():
    moe, twin = make(num_experts=3), make(num_experts=3)
    order = [2, 0, 1]
    twin.experts = nn.ModuleList(moe.experts[e] for e in order)
    twin.phi = nn.Parameter(moe.phi[:, order])
    tokens = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(twin(tokens), moe(tokens))


def test_normalized_routing_does_not_see_the_length_of_tokens():
    torch.manual_seed(0)
    moe = SoftMoE(3, 2, nn.Identity, slots_per_expert=2, normalize=True)
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(moe(7 * tokens), 7 * moe(tokens))


def test_gradients_are_those_of_finite_differences():
    moe = make(normalize=True)
    tokens = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(moe.parameters())
    assert torch.autograd.gradcheck(lambda *_: moe(tokens), (tokens, *parameters))


def test_the_softmaxes_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    moe = SoftMoE(3, 2, nn.Identity, slots_per_expert=2)
    nn.init.zeros_(moe.phi)
    tokens = torch.ones(1, 300, 3)
    with torch.autocast("cpu", torch.bfloat16):
        got = moe(tokens)
    # Sums of 300 weights that were rounded to bfloat16 one by one before would drift farther.
    torch.testing.assert_close(got.float(), tokens, atol=8e-3, rtol=0)


@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_as_one_graph():
    torch.manual_seed(0)
    moe = SoftMoE(3, 2, lambda: nn.Linear(3, 4), slots_per_expert=2)
    tokens = torch.randn(2, 5, 3)
    compiled = torch.compile(moe, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), moe(tokens))


@pytest.mark.parametrize("shape", [(2, 5, 4), (5, 3), (2, 0, 3)])
@pytest.mark.usefixtures("without_shape_checks")
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="tokens has shape"):
        make()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", ["dim", "num_experts", "slots_per_expert"])
def test_counts_below_one_are_refused(name):
    settings = {"dim": 3, "num_experts": 2, "slots_per_expert": 2, name: 0}
    with pytest.raises(ValueError, match=name):
        SoftMoE(expert=nn.Identity, **settings)
