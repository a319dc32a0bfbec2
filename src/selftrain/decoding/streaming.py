"""Tokens to the user as they become final."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from selftrain.decoding.stopping import Stopping

Sink = Callable[[int, list[int]], None]
"""Takes a row's index and its next final tokens."""


class RowStream:
    """Passes on one row's tokens once, each only when nothing can take it back.

    What an end of sequence or the token budget cuts off never arrives here. Tokens that may be the
    beginning of a stop string are held until it is clear that they are not.
    """

    def __init__(self, row: int, sink: Sink, stopping: Stopping) -> None:
        self.row, self.sink, self.stopping, self._sent = row, sink, stopping, 0

    def put(self, token_ids: list[int], *, done: bool) -> None:
        """Pass on what is new and final in ``token_ids``, all tokens of the row so far."""
        final = len(token_ids) if done else self._num_safe(token_ids)
        if final > self._sent:
            self.sink(self.row, token_ids[self._sent : final])
            self._sent = final

    def _num_safe(self, token_ids: list[int]) -> int:
        """Return how many tokens cannot be part of a stop string that is still to come."""
        num, stop, decode = len(token_ids), self.stopping.stop, self.stopping.decode
        if not stop:
            return num
        # The first bytes of a character may be those of one in a stop string.
        whole = decode(token_ids).rstrip("\ufffd")
        safe = whole[: len(whole) - max(_overlap(whole, s) for s in stop)]
        while num > self._sent and not safe.startswith(text := decode(token_ids[:num])):
            num -= 1
        # Tokens without text go with a stop string that follows them.
        while num > self._sent and decode(token_ids[: num - 1]) == text:
            num -= 1
        return num


def sink_of(streamer: BaseStreamer | Sink, input_ids: Tensor) -> tuple[Sink, Callable[[], None]]:
    """Return where tokens go and what to call at the end.

    Args:
        streamer: A function of row and tokens, or a streamer of transformers. Those know no rows
            and so take a single one; they are given the prompt first, as transformers does.
        input_ids: The prompts.

    Raises:
        ValueError: If a streamer of transformers is given for several rows.
        TypeError: If it is neither.
    """
    if isinstance(streamer, BaseStreamer):
        if len(input_ids) > 1:
            raise ValueError(
                f"streamer is a {type(streamer).__name__}, which follows one row, but there are "
                f"{len(input_ids)}; pass a function of (row, token_ids) instead."
            )
        stream: BaseStreamer = streamer
        stream.put(input_ids.cpu())
        return lambda row, token_ids: stream.put(torch.tensor(token_ids)), stream.end
    if not callable(streamer):
        raise TypeError(
            f"streamer must be a function of (row, token_ids) or a BaseStreamer of transformers, "
            f"got {type(streamer).__name__}."
        )
    return streamer, lambda: None


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
