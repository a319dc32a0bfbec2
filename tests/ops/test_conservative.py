"""The conservative penalty: a cross entropy of actions, and what its minimum is."""

import numpy as np
import pytest
import torch

from selftrain.nn import CategoricalValueHead
from selftrain.ops import HLGauss, Support, conservative_penalty


def test_it_is_the_cross_entropy_of_the_logged_action():
    values, actions = torch.randn(7, 3, 5), torch.randint(5, (7, 3))
    expected = torch.nn.functional.cross_entropy(
        values.flatten(0, 1), actions.flatten(), reduction="none"
    )
    torch.testing.assert_close(conservative_penalty(values, actions).flatten(), expected)


def test_a_constant_added_to_all_values_changes_nothing():
    values, actions = torch.randn(9, 4, dtype=torch.float64), torch.randint(4, (9,))
    torch.testing.assert_close(
        conservative_penalty(values + 123.0, actions), conservative_penalty(values, actions)
    )


def test_the_gradient_is_that_of_finite_differences():
    values = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([0, 1, 2, 0])
    legal = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 1]]).bool()
    assert torch.autograd.gradcheck(
        lambda v: conservative_penalty(v, actions, legal=legal), (values,)
    )


def test_the_gradient_flows_through_the_readout_of_a_categorical_head():
    head = CategoricalValueHead(3, HLGauss(Support(-1.0, 1.0, 7)), num_outputs=4).double()
    logits = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([3, 1])
    assert torch.autograd.gradcheck(
        lambda x: conservative_penalty(head.value(x), actions), (logits,)
    )


def test_actions_that_are_not_legal_count_for_nothing():
    values, actions = torch.randn(6, 5), torch.zeros(6, dtype=torch.long)
    legal = torch.tensor([True, True, False, False, True]).expand(6, 5)
    torch.testing.assert_close(
        conservative_penalty(values, actions, legal=legal),
        conservative_penalty(values[:, [0, 1, 4]], actions),
    )


def test_half_precision_values_give_the_penalty_in_float32():
    values = torch.randn(5, 3).bfloat16()
    penalty = conservative_penalty(values, torch.zeros(5, dtype=torch.long))
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(
        penalty, conservative_penalty(values.float(), torch.zeros(5, dtype=torch.long))
    )


def test_its_minimum_is_the_logarithm_of_the_frequencies_of_actions():
    """The penalty alone is behaviour cloning: softmax(Q) becomes the policy that logged."""
    actions = torch.tensor([0] * 6 + [1] * 3 + [2])
    values = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = conservative_penalty(values.expand(10, 3), actions).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(values.detach().softmax(0), [0.6, 0.3, 0.1], atol=1e-6)


def test_it_compiles_as_one_graph(without_shape_checks):
    compiled = torch.compile(conservative_penalty, fullgraph=True, backend="eager")
    values, actions = torch.randn(3, 4), torch.tensor([0, 1, 2])
    torch.testing.assert_close(compiled(values, actions), conservative_penalty(values, actions))


def test_nothing_gives_nothing():
    assert conservative_penalty(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize(
    ("values", "actions", "legal", "said"),
    [
        ((3, 2), (2,), None, r"values has shape \(3, 2\), actions \(2,\)"),
        ((3, 2), (3,), (3, 4), r"legal has shape \(3, 4\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    without_shape_checks, values, actions, legal, said
):
    mask = None if legal is None else torch.ones(legal, dtype=torch.bool)
    with pytest.raises(ValueError, match=said):
        conservative_penalty(
            torch.zeros(values), torch.zeros(actions, dtype=torch.long), legal=mask
        )
