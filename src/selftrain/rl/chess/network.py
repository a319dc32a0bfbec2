"""A transformer that reads a position, or a position and a move, and predicts who wins.

Shape letters: B batch, T tokens, D features, Z bins.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from selftrain.nn.value_heads import CategoricalValueHead, ScalarValueHead
from selftrain.ops.value_transforms import ValueTransform
from selftrain.rl.chess.config import ChessConfig, Predicts
from selftrain.rl.chess.view import MoverView
from selftrain.tasks.chess.tokens import FEN_SYMBOLS, MOVES, NUM_FEN_TOKENS

_READOUT = len(FEN_SYMBOLS)
_FIRST_MOVE = _READOUT + 1
_VOCABULARY = _FIRST_MOVE + len(MOVES)
# The scale that normalised features have, so that biases do not drown what was read.
_EMBEDDING_STD = 0.5


class ChessValueNet(nn.Module):
    """A transformer without causal mask over the tokens of a position, with a value head.

    After "Grandmaster-Level Chess Without Search" (arXiv 2402.04494, section 2): learned positions,
    normalisation behind each block (post-LN), every token sees every other, and the value is read
    off one more token at the end. The feed-forward layers are torch's, with GELU and biases.

    Args:
        transform: Of the categorical head, with a support of [0, 1]; None for a scalar head, which
            is trained by squared errors.
        config: Its size, and what it predicts. "action_value" reads 77 tokens, the move and the
            readout, and gives the value of the move; "state_value" reads no move. Both mean the
            side to move of the position that is read.

    Raises:
        TypeError: If ``transform`` is no transform.

    Example:
        >>> from selftrain.ops import HLGauss, Support
        >>> from selftrain.tasks.chess import encode_fen, move_number
        >>> fen = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"
        >>> network = ChessValueNet(HLGauss(Support(0.0, 1.0, 128)), ChessConfig(width=16))
        >>> logits = network(
        ...     torch.from_numpy(encode_fen(fen))[None], torch.tensor([move_number("e2e4")])
        ... )
        >>> network.head.value(logits).shape
        torch.Size([1])
    """

    head: CategoricalValueHead | ScalarValueHead

    def __init__(
        self,
        transform: ValueTransform | None,
        config: ChessConfig = ChessConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        width = config.width
        self.predicts: Predicts = config.predicts
        self.view = MoverView() if config.mover_view else None
        num_tokens = NUM_FEN_TOKENS + 1 + (config.predicts == "action_value")
        self.symbols = nn.Embedding(_VOCABULARY, width)
        self.places = nn.Parameter(torch.empty(num_tokens, width))
        nn.init.normal_(self.symbols.weight, std=_EMBEDDING_STD)
        nn.init.normal_(self.places, std=_EMBEDDING_STD)
        self.blocks = nn.ModuleList(
            _Block(width, config.num_heads) for _ in range(config.num_layers)
        )
        # Last, so that bodies drawn from one seed are equal whatever the head.
        self.head = (
            ScalarValueHead(width) if transform is None else CategoricalValueHead(width, transform)
        )

    def forward(
        self,
        tokens: Integer[Tensor, "batch 77"],
        moves: Integer[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch bins"]:
        """Return the logits of the head for each position, or position and move.

        Args:
            tokens: Of ``encode_fens``.
            moves: Their numbers in ``MOVES``; None for a network of state values.

        Raises:
            ValueError: If moves are given to a network of state values, or the other way round.
        """
        if (moves is None) != (self.predicts == "state_value"):
            raise ValueError(
                f"a network that predicts {self.predicts} is called with "
                + ("tokens only." if moves is not None else "tokens and moves.")
            )
        if self.view is not None:
            tokens, moves = self.view(tokens, moves)
        parts = [tokens.long(), tokens.new_full((len(tokens), 1), _READOUT, dtype=torch.long)]
        if moves is not None:
            parts.insert(1, moves[:, None] + _FIRST_MOVE)
        features_BTD = self.symbols(torch.cat(parts, dim=1)) + self.places
        for block in self.blocks[:-1]:
            features_BTD = block(features_BTD, features_BTD)
        # Of the last block only the readout is wanted.
        return self.head(self.blocks[-1](features_BTD[:, -1:], features_BTD)[:, 0])


class _Block(nn.Module):
    """Attention from some tokens to all, and a feed-forward layer, normalised behind each.

    torch's encoder layer computes the same for all tokens, wanted or not.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, wanted_BTD: Tensor, all_BTD: Tensor) -> Tensor:
        """Return the new features of the wanted tokens."""
        query = self._heads(self.query(wanted_BTD))
        key, value = map(self._heads, self.key_value(all_BTD).chunk(2, dim=-1))
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        mixed_BTD = self.mix(seen.transpose(1, 2).flatten(2))
        features_BTD = self.norm_attention(wanted_BTD + mixed_BTD)
        return self.norm_feed_forward(features_BTD + self.feed_forward(features_BTD))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
