"""What speculative decoding returns, and the numbers that describe how it went."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculativeStats:
    """Counts over all rows; what was cut off after an end of sequence is still counted."""

    num_target_calls: int
    """Blocks: target forwards that a row took part in, the prefill not counted."""
    num_drafted: int
    """Tokens proposed."""
    num_tested: int
    """Tokens proposed up to and including the first that fell in each block."""
    num_accepted: int
    """Tokens that stood."""
    total_overlap: float
    """Sum over tested positions of sum_v min(p, q), the probability of acceptance there."""
    lossless: bool = True
    """Whether the output law is exactly the target's."""
    tv_bound: float = 0.0
    """The sum over a row's positions of the total variation distance from the target's law there,
    at most 1; the largest over rows, 0 where lossless. It is what this run came to: its mean over
    runs bounds the distance between the law of whole rows and the target's."""

    @property
    def analytic_acceptance(self) -> float:
        """Mean of sum_v min(p, q) at the tested positions: the acceptance of the token rule.

        With that rule it is the acceptance rate, with less noise; the block rule accepts more.
        """
        return _ratio(self.total_overlap, self.num_tested)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over tested; with the token rule it estimates :attr:`analytic_acceptance`."""
        return _ratio(self.num_accepted, self.num_tested)

    @property
    def accepted_fraction(self) -> float:
        """Accepted over drafted; lower, since a block's tokens after the first fall are lost."""
        return _ratio(self.num_accepted, self.num_drafted)

    @property
    def block_efficiency(self) -> float:
        """Mean number of tokens emitted per target call, at most num_draft_tokens + 1."""
        return _ratio(self.num_accepted + self.num_target_calls, self.num_target_calls)

    def __add__(self, other: "SpeculativeStats") -> "SpeculativeStats":
        """Return the counts of both runs together."""
        return SpeculativeStats(
            num_target_calls=self.num_target_calls + other.num_target_calls,
            num_drafted=self.num_drafted + other.num_drafted,
            num_tested=self.num_tested + other.num_tested,
            num_accepted=self.num_accepted + other.num_accepted,
            total_overlap=self.total_overlap + other.total_overlap,
            lossless=self.lossless and other.lossless,
            tv_bound=max(self.tv_bound, other.tv_bound),
        )


@dataclass(frozen=True, slots=True)
class Block:
    """What happened to one row in one block."""

    row: int
    drafted: tuple[int, ...]
    num_accepted: int
    next_token: int


@dataclass(frozen=True, slots=True)
class SpeculativeOutput:
    """Generated sequences and how they came about."""

    sequences: Tensor
    """The prompts as given, then the new tokens, then padding ``[batch, time]``."""
    lengths: Tensor
    """Number of new tokens of each row ``[batch]``."""
    stats: SpeculativeStats
    blocks: tuple[Block, ...] = ()
    """Every block in order, when they were asked for."""

    def new_tokens(self) -> list[list[int]]:
        """Return each row's new token ids."""
        longest = int(self.lengths.max())
        new = self.sequences[:, self.sequences.shape[1] - longest :].tolist()
        return [row[:n] for row, n in zip(new, self.lengths.tolist(), strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
