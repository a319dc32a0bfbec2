"""The transformer over positions."""

import chess
import pytest
import torch
from torch import nn

from selftrain._core.rng import seeded_torch
from selftrain.ops import HLGauss, OneHot, Support, TwoHot
from selftrain.rl.chess import ChessConfig, ChessValueNet
from selftrain.tasks.chess import encode_fens

BINS = Support(0.0, 1.0, 32)
SMALL = {"width": 16, "num_heads": 2}
TOKENS = torch.from_numpy(encode_fens([chess.STARTING_FEN, "4k3/8/8/8/8/8/8/QQ2K3 b - - 12 40"]))
MOVES = torch.tensor([5, 700])


def make(transform=None, **settings) -> ChessValueNet:
    with seeded_torch(0, "weights"):
        return ChessValueNet(transform, ChessConfig(**SMALL, **settings))


def by_torch(network: ChessValueNet, features: torch.Tensor) -> torch.Tensor:
    """Return what torch's own encoder layers make of features, with the network's weights."""
    width = network.places.shape[1]
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(
            width, block.num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        attention = layer.self_attn
        with torch.no_grad():
            for name in ("weight", "bias"):
                parts = [getattr(block.query, name), getattr(block.key_value, name)]
                getattr(attention, f"in_proj_{name}").copy_(torch.cat(parts))
                getattr(attention.out_proj, name).copy_(getattr(block.mix, name))
                getattr(layer.linear1, name).copy_(getattr(block.feed_forward[0], name))
                getattr(layer.linear2, name).copy_(getattr(block.feed_forward[2], name))
                getattr(layer.norm1, name).copy_(getattr(block.norm_attention, name))
                getattr(layer.norm2, name).copy_(getattr(block.norm_feed_forward, name))
        features = layer(features)
    return features


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_readout_is_that_of_torchs_encoder(num_layers):
    network = make(num_layers=num_layers, mover_view=False)
    seen = []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(TOKENS, MOVES)
    symbols = torch.cat([TOKENS.long(), MOVES[:, None] + 32, torch.full((2, 1), 31)], 1)
    features = network.symbols(symbols) + network.places
    torch.testing.assert_close(seen[0], by_torch(network, features)[:, -1], atol=1e-5, rtol=1e-4)


def test_every_token_and_the_move_reach_the_value():
    network = make()
    base = network(TOKENS[:1], MOVES[:1])
    assert not torch.equal(base, network(TOKENS[:1], MOVES[1:]))
    for place in range(TOKENS.shape[1]):
        other = TOKENS[:1].clone()
        other[0, place] = (other[0, place] + 1) % 31
        assert not torch.equal(base, network(other, MOVES[:1])), place


@pytest.mark.parametrize("transform", [HLGauss(BINS), TwoHot(BINS), OneHot(BINS)])
def test_heads_share_one_body_and_all_its_first_weights(transform):
    scalar, categorical = make(None).state_dict(), make(transform).state_dict()
    body = {name for name in scalar if not name.startswith("head.")}
    assert body == {name for name in categorical if not name.startswith("head.")}
    assert all(torch.equal(scalar[name], categorical[name]) for name in body)


def test_the_published_size_has_about_nine_million_parameters():
    # 8 blocks of 12 D^2 + 13 D, the symbols, 79 places, and a head of 128 bins.
    with torch.device("meta"):
        network = ChessValueNet(HLGauss(Support(0.0, 1.0, 128)), ChessConfig.paper_9m())
    width = 256
    expected = 8 * (12 * width**2 + 13 * width) + (2000 + 79) * width + 128 * (width + 1)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert 6.5e6 < expected < 9.5e6


def test_a_network_of_positions_takes_no_moves_and_one_of_moves_needs_them():
    with pytest.raises(ValueError, match="tokens only"):
        make(predicts="state_value")(TOKENS, MOVES)
    with pytest.raises(ValueError, match="tokens and moves"):
        make()(TOKENS)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"width": 10, "num_heads": 3}, "width is 10"),
        ({"num_layers": 0}, "num_layers"),
        ({"predicts": "policy"}, "predicts"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
    ],
)
def test_settings_out_of_range_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        ChessConfig(**settings)
