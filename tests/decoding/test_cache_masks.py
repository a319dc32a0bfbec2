import pytest
import torch
from transformers import masking_utils

from selftrain.decoding.cache import MaskPlan, slot_mask


@pytest.mark.parametrize("window", [None, 1, 3, 5, 8])
def test_the_mask_is_the_one_that_transformers_builds_for_each_row(window):
    """Each row's mask against transformers' own mask function at the same positions."""
    positions = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 7]])
    sees = (
        masking_utils.causal_mask_function
        if window is None
        else masking_utils.sliding_window_causal_mask_function(window)
    )
    zero, slots = torch.tensor(0), torch.arange(8)
    want = sees(zero, zero, positions.unsqueeze(-1), slots)
    assert torch.equal(slot_mask(positions, 8, window=window), want.unsqueeze(1))


def test_an_additive_mask_hides_the_same_slots_with_the_lowest_finite_value():
    positions = torch.tensor([[2, 3]])
    seen = slot_mask(positions, 4, window=2)
    mask = slot_mask(positions, 4, window=2, dtype=torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask == 0, seen)
    assert (mask[~seen] == torch.finfo(torch.bfloat16).min).all()


@pytest.mark.parametrize(
    ("name", "window", "mixed"),
    [
        ("llama", None, False),
        ("mistral", 4, False),
        ("mixtral", 4, False),
        ("phi3", 4, False),
        ("gemma2", 4, True),
        ("gemma3", 4, True),
    ],
)
def test_the_plan_reads_windows_from_the_configuration(make_model, name, window, mixed):
    plan = MaskPlan(make_model(name))
    assert (plan.window, plan.mixed) == (window, mixed)


def test_a_row_that_sees_everything_needs_no_mask(make_model):
    """One query, or a whole prompt; but only under sdpa, which is causal without being told."""
    model = make_model("llama")
    plan, one, whole = MaskPlan(model), torch.tensor([[6]]), torch.arange(7)[None]
    assert plan.build(one, 7) is None
    assert plan.build(whole, 7) is None
    assert plan.build(whole[:, 2:], 7) is not None
    assert plan.build(one.expand(2, 1), 7) is not None
    model.set_attn_implementation("eager")
    plan = MaskPlan(model)
    assert torch.equal(plan.build(one, 7), torch.zeros(1, 1, 1, 7))
    assert torch.equal(plan.build(whole, 7), slot_mask(whole, 7, dtype=torch.float32))


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_single_row_is_masked_like_rows_in_general(make_model, name, dtype, attention):
    model = make_model(name).to(dtype)
    model.set_attn_implementation(attention)
    plan = MaskPlan(model)
    for new, extent in [(2, 3), (2, 9), (1, 9), (6, 9)]:
        positions = torch.arange(extent - new, extent)[None]
        got = plan.build(positions, extent)
        if got is not None:
            want = plan.build(positions.expand(2, -1), extent)
            assert torch.equal(got, want[:1])


def test_a_window_masks_from_its_own_size_on(make_model):
    plan, mixed = MaskPlan(make_model("mistral")), MaskPlan(make_model("gemma3"))
    for extent in range(1, 8):
        position = torch.tensor([[extent - 1]])
        mask, masks = plan.build(position, extent), mixed.build(position, extent)
        assert masks["full_attention"] is None
        for sliding in (mask, masks["sliding_attention"]):
            assert (sliding is None) == (extent < 4)
            if sliding is not None:
                assert int(sliding.sum()) == 4


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gemma2"])
@torch.no_grad()
def test_every_node_of_a_tree_scores_as_the_end_of_its_own_path(make_model, name):
    """Five tokens, then a tree: nodes 5 and 8 under them, 6 and 7 under 5, 9 under 6."""
    model = make_model(name, sharpness=2.0).double()
    tokens = torch.randint(2, 64, (1, 10), generator=torch.Generator().manual_seed(0))
    parents = [-1, 0, 1, 2, 3, 4, 5, 5, 4, 6]
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    visible = torch.zeros(1, 10, 10, dtype=torch.bool)
    for node, path in enumerate(paths):
        visible[0, node, path] = True
    positions = torch.tensor([[len(p) - 1 for p in paths]])
    mask = MaskPlan(model).build(positions, 10, visible=visible)
    got = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
    atol = 2e-6 if name == "gemma2" else 1e-10  # its attention is eager: a softmax in float32
    for node, path in enumerate(paths):
        want = model(input_ids=tokens[:, path], use_cache=False).logits[0, -1]
        torch.testing.assert_close(got.logits[0, node], want, atol=atol, rtol=0)
