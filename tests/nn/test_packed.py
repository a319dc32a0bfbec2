import pytest
import torch
from torch import nn

from selftrain.nn.packed import PackedLinear, pack_weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("num_tokens", [1, 2, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_the_same(dtype, tolerance, num_tokens, bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=bias).to(dtype)
    x = torch.randn(2, num_tokens, 48).to(dtype)
    with torch.inference_mode():
        want = linear.double()(x.double())
        got = PackedLinear(linear.to(dtype))(x)
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


def test_a_packed_language_model_scores_as_the_original(make_llama):
    model = make_llama(sharpness=2.0)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        torch.testing.assert_close(
            pack_weights(model)(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4
        )


def test_the_original_keeps_its_layers_and_shares_the_rest():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model.add_module("again", model[0])
    packed = pack_weights(model)
    assert type(model[0]) is nn.Linear
    assert isinstance(packed[0], PackedLinear)
    assert packed.again is packed[0], "a layer that occurs twice is packed once"
    assert packed[1].weight is model[1].weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_dtypes_are_refused(dtype):
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=f"this one is {dtype}"):
        PackedLinear(linear)


def test_it_compiles_as_one_graph():
    packed = pack_weights(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
    compiled = torch.compile(packed, fullgraph=True, backend="eager")
    x = torch.randn(3, 8)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), packed(x))
