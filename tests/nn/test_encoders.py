"""The encoders: sizes that were published, alignment, and inputs of all kinds."""

import math

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from selftrain.nn import ImpalaEncoder, MLPEncoder, NatureEncoder, ResNetEncoder, SoftMoE
from selftrain.nn.impala import _SamePool

SMALL = {
    "mlp": lambda: MLPEncoder(2 * 9 * 12, (8, 6)),
    "nature": lambda: NatureEncoder((2, 9, 12), layers=((4, 3, 2), (5, 2, 1)), hidden=6),
    "impala": lambda: ImpalaEncoder((2, 9, 12), channels=(4, 5), hidden=6),
    "impala_moe": lambda: ImpalaEncoder((2, 9, 12), channels=(4, 5), hidden=6, num_experts=4),
    "impala_bare": lambda: ImpalaEncoder((2, 9, 12), channels=(4, 5), hidden=None),
    "resnet_places": lambda: ResNetEncoder((2, 9, 12), depth=18, spatial_embeddings=3),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("width", "parameters"), [(1, 97_744), (4, 1_552_192)])
def test_the_impala_stages_have_the_parameters_of_the_reference(width, parameters):
    encoder = ImpalaEncoder(width=width, hidden=None)
    assert count(encoder) == parameters
    assert sum(isinstance(part, nn.Conv2d) for part in encoder.modules()) == 15
    assert encoder.latent_shape == (32 * width, 11, 11)
    assert encoder.num_features == 32 * width * 121


def test_the_dense_layer_of_bbf_has_the_size_of_the_reference():
    encoder = ImpalaEncoder(width=4, hidden=2048)
    assert count(encoder.penultimate) == 15_488 * 2048 + 2048  # 31.7 million


def test_the_nature_encoder_has_the_parameters_of_dqn():
    # 8224 + 32832 + 36928 of the convolutions, 1606144 of the dense layer
    assert count(NatureEncoder()) == 1_684_128


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # Published sizes with 3 channels, less the classifier of 1000 classes.
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_resnets_have_the_published_number_of_parameters(depth, parameters):
    with torch.device("meta"):
        encoder = ResNetEncoder((3, 224, 224), depth=depth)
    classifier = 1000 * (encoder.num_features + 1)
    assert count(encoder) == parameters - classifier


@pytest.mark.parametrize(
    ("depth", "kind", "sizes"),
    [(18, "basic", (64, 128, 256, 512)), (50, "bottleneck", (256, 512, 1024, 2048))],
)
def test_a_resnet_computes_what_transformers_does(depth, kind, sizes):
    torch.manual_seed(0)
    with torch.device("meta"):  # no time for weights that are drawn again
        encoder = ResNetEncoder((4, 33, 47), depth=depth)
    depths = [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    settings = {"num_channels": 4, "layer_type": kind, "hidden_sizes": sizes, "depths": depths}
    with torch.device("meta"):
        peer = ResNetModel(ResNetConfig(**settings))
    for name, part in list(peer.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            peer.set_submodule(name, nn.GroupNorm(32, part.num_features))
    encoder, peer = encoder.to_empty(device="cpu"), peer.to_empty(device="cpu")
    # There the shortcut of a block comes before its convolutions; we write it after them.
    ours = [part for part in encoder.stages if hasattr(part, "shortcut")]
    theirs = [layer for stage in peer.encoder.stages for layer in stage.layers]
    pairs = [(encoder.stages[0], peer.embedder)]
    for own, other in zip(ours, theirs, strict=True):
        pairs += [(own.convolutions, other.layer), (own.shortcut, other.shortcut)]
    with torch.no_grad():
        for own, other in pairs:
            for parameter, peers in zip(own.parameters(), other.parameters(), strict=True):
                # Norms at their defaults would hide one that is in the wrong place.
                parameter.uniform_(-0.5, 1.0)
                peers.copy_(parameter)
        images = torch.randn(2, 4, 33, 47)
        torch.testing.assert_close(
            encoder(images), peer(images).pooler_output.flatten(1), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("side", [*range(1, 13), 21, 42, 84])
def test_pooling_pads_as_same_does(side):
    torch.manual_seed(0)
    image = torch.randn(side, 5)
    got = _SamePool()(image[None, None])[0, 0]
    places = -(-side // 2)
    # TensorFlow's rule: ceil(side / 2) windows, the smaller half of the padding before.
    before = max((places - 1) * 2 + 3 - side, 0) // 2
    for place in range(places):
        start = place * 2 - before
        rows = image[max(start, 0) : start + 3]
        assert got[place, 1] == rows[:, 1:4].max()


def test_pooling_differs_from_symmetric_padding_on_even_sides():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert not torch.equal(_SamePool()(image), nn.MaxPool2d(3, 2, 1)(image))


@pytest.mark.parametrize("name", SMALL)
def test_bytes_are_scaled_to_one(name):
    torch.manual_seed(0)
    encoder = SMALL[name]()
    frames = torch.randint(0, 256, (3, 2, 9, 12), dtype=torch.uint8)
    torch.testing.assert_close(encoder(frames), encoder(frames.float() / 255))


@pytest.mark.parametrize("name", SMALL)
def test_the_output_has_the_promised_number_of_features(name):
    encoder = SMALL[name]()
    for batch in (0, 1, 3):
        assert encoder(torch.zeros(batch, 2, 9, 12)).shape == (batch, encoder.num_features)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mlp"])
def test_the_latent_has_the_promised_shape(name):
    encoder = SMALL[name]()
    assert encoder.latent(torch.zeros(3, 2, 9, 12)).shape == (3, *encoder.latent_shape)


@pytest.mark.parametrize("name", SMALL)
def test_samples_of_a_batch_do_not_see_each_other(name):
    torch.manual_seed(0)
    encoder, images = SMALL[name](), torch.rand(3, 2, 9, 12)
    torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    encoder = SMALL[name]()
    encoder(torch.rand(4, 2, 9, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("name", ["mlp", "nature", "impala_moe"])
@pytest.mark.usefixtures("without_shape_checks")
def test_an_encoder_compiles_as_one_graph(name):
    torch.manual_seed(0)
    encoder, frames = SMALL[name](), torch.randint(0, 256, (3, 2, 9, 12), dtype=torch.uint8)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(frames), encoder(frames))


@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_in_bfloat16_takes_bytes(name):
    encoder = SMALL[name]().to(torch.bfloat16)
    assert encoder(torch.zeros(1, 2, 9, 12, dtype=torch.uint8)).dtype == torch.bfloat16


def test_a_stack_of_color_frames_counts_as_channels():
    torch.manual_seed(0)
    encoder, frames = ImpalaEncoder((6, 9, 12), channels=(4,)), torch.rand(2, 2, 3, 9, 12)
    torch.testing.assert_close(encoder(frames), encoder(frames.flatten(1, 2)))


def test_a_single_gray_frame_needs_no_axis_for_channels():
    torch.manual_seed(0)
    encoder, frames = ImpalaEncoder((1, 9, 12), channels=(4,)), torch.rand(2, 9, 12)
    torch.testing.assert_close(encoder(frames), encoder(frames[:, None]))


def test_the_experts_stand_in_for_the_dense_layer_place_by_place():
    torch.manual_seed(0)
    encoder = ImpalaEncoder((2, 9, 12), channels=(4, 5), hidden=6, num_experts=4)
    moe = encoder.penultimate.layer
    channels, rows, columns = encoder.latent_shape
    assert isinstance(moe, SoftMoE)
    assert moe.phi.shape == (channels, 4, math.ceil(rows * columns / 4))
    images = torch.rand(2, 2, 9, 12)
    latent = encoder.latent(images)
    tokens = torch.stack([latent[:, :, r, c] for r in range(rows) for c in range(columns)], 1)
    torch.testing.assert_close(encoder(images), moe(tokens).flatten(1))


def test_learned_embeddings_of_places_take_the_mean_where_they_are_constant():
    torch.manual_seed(0)
    encoder = ResNetEncoder((1, 40, 40), depth=18, spatial_embeddings=2)
    assert encoder.embedding is not None
    nn.init.constant_(encoder.embedding, 1 / 4)  # 2 by 2 places
    images = torch.rand(2, 1, 40, 40)
    want = encoder.latent(images).mean((2, 3))
    torch.testing.assert_close(encoder(images), want.repeat_interleave(2, 1))


def test_weights_are_xavier_uniform_and_biases_zero():
    encoder = ImpalaEncoder((4, 20, 20), width=2)
    for part in encoder.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            receptive = math.prod(part.weight.shape[2:])
            fans = (part.weight.shape[0] + part.weight.shape[1]) * receptive
            bound = math.sqrt(6 / fans)
            largest = part.weight.abs().max().item()
            assert 0.9 * bound < largest <= bound
            assert part.bias is not None
            assert part.bias.abs().sum() == 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(3, 2, 9, 11), (3, 3, 9, 12), (18,)])
def test_observations_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match="the input has shape"):
        SMALL[name]()(torch.zeros(shape))


def test_images_that_lie_on_their_side_are_refused():
    with pytest.raises(ValueError, match="the input has shape"):
        SMALL["impala"]()(torch.zeros(3, 2, 12, 9))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("make", [NatureEncoder, ImpalaEncoder, ResNetEncoder])
@pytest.mark.parametrize(
    ("in_shape", "error"),
    [((84, 84), ValueError), ((4, 0, 84), ValueError), ((4.0, 84, 84), TypeError)],
)
def test_a_shape_that_is_none_is_refused(make, in_shape, error):
    with pytest.raises(error, match="in_shape"):
        make(in_shape)


def test_images_too_small_for_the_kernels_are_refused():
    with pytest.raises(ValueError, match="give layers with smaller kernels"):
        NatureEncoder((4, 10, 10))


def test_experts_without_outputs_are_refused():
    with pytest.raises(ValueError, match="num_experts needs it"):
        ImpalaEncoder(hidden=None, num_experts=4)


def test_a_depth_that_no_resnet_has_is_refused():
    with pytest.raises(ValueError, match="18, 34, 50, 101, 152; got 20"):
        ResNetEncoder(depth=20)


def test_an_mlp_without_layers_is_refused():
    with pytest.raises(ValueError, match="hidden is empty"):
        MLPEncoder(4, ())
