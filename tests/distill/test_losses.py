import pytest
import torch
from scipy import stats

from selftrain.distill.losses import agreement


def test_agreement_equals_its_definitions():
    rng = torch.Generator().manual_seed(0)
    s, t = (torch.randn(50, 9, generator=rng, dtype=torch.float64) for _ in range(2))
    q, p = torch.softmax(s, -1), torch.softmax(t, -1)
    result = agreement(s, t)
    expected = {
        "acceptance": torch.minimum(p, q).sum(-1),
        "top1_agreement": (q.argmax(-1) == p.argmax(-1)).double(),
        "student_entropy": torch.tensor(stats.entropy(q.numpy(), axis=-1)),
        "teacher_entropy": torch.tensor(stats.entropy(p.numpy(), axis=-1)),
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name].double(), value, rtol=1e-5, atol=1e-6)


def test_banned_tokens_have_no_effect_on_agreement():
    s, t = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]])
    banned = torch.full((1, 1), -torch.inf)
    a, b = agreement(s, t), agreement(torch.cat([s, banned], 1), torch.cat([t, banned], 1))
    for name in a:
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("num", [0, 1])
def test_agreement_takes_any_number_of_positions(num):
    result = agreement(torch.zeros(num, 4), torch.zeros(num, 4))
    assert {value.shape for value in result.values()} == {(num,)}
