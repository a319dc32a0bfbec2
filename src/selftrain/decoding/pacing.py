"""How many tokens to draft: always the same number, or what pays off as far as is known."""

import statistics
from typing import Protocol

from selftrain.decoding.cost_model import expected_tokens

_MOST = 16  # draft tokens; beyond it gains need acceptance above 0.95
_PLAIN_FIRST = 3  # blocks without draft, to know what plain decoding costs
_FORGET = 0.95  # weight of the past when acceptance is estimated, per tested token
_CREDIT = 3.0  # plain steps that a call may lose by trying
_TOLERANCE = 0.002  # and the share of plain decoding's time that it may lose besides
_RETRY = 64  # plain steps until drafting is tried again, doubled every time


class Pacer(Protocol):
    """Decides how many tokens to draft, block by block."""

    @property
    def max_draft_tokens(self) -> int:
        """The most that it will ever ask for."""
        ...

    @property
    def learns(self) -> bool:
        """Whether to call ``observe``, for which the host waits for the device once more."""
        ...

    def next(self) -> int:
        """Return the number of tokens to draft in the coming block; 0 is plain decoding."""
        ...

    def observe(
        self,
        num_drafted: int,
        seconds: float,
        *,
        num_rows: int,
        num_emitted: int,
        num_tested: int,
        overlap: float,
    ) -> None:
        """Learn how a block went.

        Args:
            num_drafted: Tokens drafted.
            seconds: What the block took.
            num_rows: Rows in the batch.
            num_emitted: Tokens gained, over all rows.
            num_tested: Proposals tested, over all rows.
            overlap: Sum of the tested proposals' acceptance probabilities.
        """
        ...


class FixedPacer:
    """Always the same number of draft tokens."""

    learns = False

    def __init__(self, num_draft_tokens: int) -> None:
        self.max_draft_tokens = num_draft_tokens

    def next(self) -> int:
        """Return that number."""
        return self.max_draft_tokens

    def observe(self, num_drafted: int, seconds: float, **counts: float) -> None:
        """Learn nothing."""


class AutoPacer:
    r"""Drafts as many tokens as maximise the expected speed, none where drafting does not pay.

    Blocks are timed and acceptance is averaged, the past discounted. A block with K draft tokens is
    expected to take the time seen with K, or that of plain decoding plus K times the mean price of
    a draft token, and to yield :func:`expected_tokens`; the best ratio wins.

    Trying costs time, and estimates can be wrong. So accounts are kept: what all blocks took,
    against what plain decoding would have taken for the same tokens. When that debt exceeds a small
    credit (some plain steps and a share of the whole), it decodes plainly until there is room for
    another try, the price of trying included. So a run loses little more than the credit, whatever
    the draft is worth.
    """

    max_draft_tokens = _MOST
    learns = True

    def __init__(self) -> None:
        self._plain: list[float] = []  # seconds of the first plain blocks at this batch size
        self._seconds: dict[int, float] = {}  # by number of draft tokens
        self._cold: set[int] = set()  # of these, known only with the draft catching up
        self._tested, self._overlap = 0.0, 0.0
        self._debt, self._earned = 0.0, 0.0  # seconds
        self._resume = 0.0  # seconds that the last block lost with which drafting resumed
        self._plain_since_try, self._retry = 0, _RETRY
        self._num_rows = 0

    @property
    def acceptance(self) -> float:
        """The estimated probability that a drafted token is accepted, from a prior of 1/2."""
        return (self._overlap + 0.5) / (self._tested + 1)

    def next(self) -> int:
        """Return the number of tokens to draft in the coming block."""
        if len(self._plain) < _PLAIN_FIRST:
            return 0
        plain = self._seconds[0]
        # What resuming will lose counts beforehand: the draft has to read what it missed.
        risk = self._debt + (self._resume if self._plain_since_try else 0.0)
        if risk > _CREDIT * plain + _TOLERANCE * self._earned:
            return 0
        if self._cold:  # the price without catching up is still to be seen
            return min(self._cold)
        tried = [k for k in self._seconds if k]
        if not tried:
            return 2
        # Beyond what was tried the price is a guess: go there by doubling.
        candidates = range(min(_MOST, 2 * max(tried)) + 1)
        best = max(candidates, key=lambda k: (self._rate(k), -k))
        if best == 0 and self._plain_since_try >= self._retry:
            self._retry *= 2
            self._tested, self._overlap = self._tested / 8, self._overlap / 8
            return 2
        return best

    def observe(
        self,
        num_drafted: int,
        seconds: float,
        *,
        num_rows: int,
        num_emitted: int,
        num_tested: int,
        overlap: float,
    ) -> None:
        """Learn how a block went."""
        if num_rows != self._num_rows:  # rows have left: everything is cheaper now
            self._num_rows, self._plain = num_rows, []
        resumed = num_drafted > 0 and self._plain_since_try > 0
        if num_drafted == 0:
            self._plain_since_try += 1
            self._learn_plain(seconds)
        else:
            self._learn(num_drafted, seconds, cold=resumed)
            self._plain_since_try = 0
        kept = _FORGET**num_tested
        self._tested = kept * self._tested + num_tested
        self._overlap = kept * self._overlap + overlap
        if 0 in self._seconds:
            worth = num_emitted / num_rows * self._seconds[0]
            self._earned += worth
            if num_drafted:
                self._debt += seconds - worth
            if resumed:
                self._resume = max(0.0, seconds - worth)

    def _learn_plain(self, seconds: float) -> None:
        if len(self._plain) < _PLAIN_FIRST:
            self._plain.append(seconds)
            before, now = self._seconds.get(0), min(self._plain)  # the first ones warm up
            self._seconds[0] = now
            if before is not None and len(self._plain) == 1:
                scale = now / before
                self._seconds = {k: s * scale if k else now for k, s in self._seconds.items()}
        else:
            self._learn(0, seconds, cold=False)

    def _learn(self, num_drafted: int, seconds: float, *, cold: bool) -> None:
        known = self._seconds.get(num_drafted)
        if known is None or (num_drafted in self._cold and not cold):
            self._seconds[num_drafted] = seconds
            (self._cold.add if cold else self._cold.discard)(num_drafted)
        elif not cold:  # a hiccup of the machine is no price
            self._seconds[num_drafted] = 0.8 * known + 0.2 * min(seconds, 1.5 * known)

    def _rate(self, num_drafted: int) -> float:
        """Return the expected tokens per second."""
        seconds = self._seconds.get(num_drafted)
        if seconds is None:
            plain = self._seconds[0]
            prices = [(s - plain) / k for k, s in self._seconds.items() if k]
            seconds = plain + num_drafted * max(0.0, statistics.median(prices))
        return expected_tokens(min(self.acceptance, 1.0), num_drafted) / seconds
