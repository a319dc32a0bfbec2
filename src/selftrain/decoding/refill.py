"""The loop of plain sampling: rows that end make room for rows that wait."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from selftrain.decoding.cache import Lanes
from selftrain.decoding.law import check_finite, draw
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.stopping import Stopping, StopScan
from selftrain.ops.philox import Stream, uniform

_LOOK_EVERY = 8  # steps between looks at what has ended: each look waits for the device


@dataclass(slots=True)
class Row:
    """One completion on its way."""

    prompt: int
    """The number of its prompt."""
    seed: int
    """What its noise is drawn from."""
    is_last: bool
    """Whether no row of the same prompt comes after it."""
    scan: StopScan
    token_ids: list[int] = field(default_factory=list)
    """What was drawn, perhaps beyond its end."""
    log_probs: list[float] = field(default_factory=list)
    """And the log-probability of each."""
    ended: bool = False

    def extend(self, token_ids: list[int], log_probs: list[float], *, budget: int) -> None:
        """Append what was drawn, and find out whether the row has ended."""
        self.token_ids += token_ids
        self.log_probs += log_probs
        self.ended = self.scan.advance(self.token_ids, budget=budget) is not None


class Decoding:
    """Rows that are being decoded, and rows that wait for a lane.

    Args:
        lanes: Where they are decoded.
        params: How.
        stopping: Where they end.
        batch_size: Most of them at a time.
        device: Where the model is.
    """

    def __init__(
        self,
        lanes: Lanes,
        params: SamplingParams,
        stopping: Stopping,
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._lanes, self._params, self._stopping = lanes, params, stopping
        self._batch_size, self._device = batch_size, device
        self._active: list[Row] = []  # by lane
        self._waiting: deque[Row] = deque()
        self._unread: deque[int] = deque()
        self._contexts: dict[int, Any] = {}

    def run(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]
    ) -> list[list[Row]]:
        """Complete every prompt once with each of its seeds, and return the rows in that order."""
        self._prompts, self._num_samples = prompts, len(seeds[0])
        rows = [
            [
                Row(prompt, seed, index + 1 == len(of_prompt), StopScan(self._stopping))
                for index, seed in enumerate(of_prompt)
            ]
            for prompt, of_prompt in enumerate(seeds)
        ]
        # Prompts that are read together are filled up to the longest.
        order = sorted(range(len(prompts)), key=lambda prompt: len(prompts[prompt]))
        self._unread.extend(order)
        self._waiting.extend(row for prompt in order for row in rows[prompt])
        while True:
            self._fill()
            if not self._active:
                return rows
            self._decode()

    def _fill(self) -> None:
        """Give the lanes of ended rows to waiting ones; where none wait, do without these lanes."""
        ended = [lane for lane, row in enumerate(self._active) if row.ended]
        if ended and self._lanes.refills:
            fresh, contexts = self._take(len(ended))
            if fresh:
                self._lanes.replace(ended[: len(fresh)], contexts)
            for lane, row in zip(ended, fresh, strict=False):
                self._active[lane] = row
            ended = ended[len(fresh) :]
        if ended:
            kept = [lane for lane, row in enumerate(self._active) if not row.ended]
            if kept:
                self._lanes.select(kept)
            self._active = [self._active[lane] for lane in kept]
        if not self._active and self._waiting:
            self._active, contexts = self._take(self._batch_size)
            self._lanes.open(contexts)

    def _take(self, limit: int) -> tuple[list[Row], list[Any]]:
        """Return the next rows, as many as can be together, and the contexts of their prompts."""
        rows: list[Row] = []
        contexts: list[Any] = []
        while self._waiting and len(rows) < limit:
            row = self._waiting[0]
            context = self._context(row.prompt)
            if rows and not self._lanes.together(contexts[0], context):
                break
            rows.append(self._waiting.popleft())
            contexts.append(context)
            if row.is_last:
                del self._contexts[row.prompt]
        return rows, contexts

    def _context(self, prompt: int) -> Any:
        """Return the context of a prompt; with it those are read that will be needed next."""
        if prompt not in self._contexts:
            num = max(1, self._batch_size // self._num_samples)
            chosen = [self._unread.popleft() for _ in range(min(num, len(self._unread)))]
            texts = [self._prompts[i][:-1] for i in chosen]
            num_rows = min(self._num_samples, self._batch_size)
            self._contexts.update(
                zip(chosen, self._lanes.read(texts, num_rows=num_rows), strict=True)
            )
        return self._contexts[prompt]

    def _decode(self) -> None:
        """Decode all lanes until it is time to look, or a row's budget is used up."""
        rows, budget = self._active, self._params.max_new_tokens
        device = self._device
        num = min(_LOOK_EVERY, budget - max(len(row.token_ids) for row in rows))
        texts = [self._prompts[row.prompt] for row in rows]
        last = [(row.token_ids or text)[-1] for row, text in zip(rows, texts, strict=True)]
        places = [len(text) + len(row.token_ids) for row, text in zip(rows, texts, strict=True)]
        position = torch.tensor(places, device=device).unsqueeze(1)
        noise = uniform(
            torch.tensor([row.seed for row in rows], device=device).unsqueeze(1),
            stream=Stream.EMIT,
            position=position + torch.arange(num, device=device),
        )
        pending = torch.tensor(last, device=device)
        tokens = torch.zeros(len(rows), num, dtype=torch.long, device=device)
        log_probs = torch.zeros(len(rows), num, device=device)
        for step in range(num):
            drawn = draw(self._lanes.step(pending), noise[:, step], self._params)
            tokens[:, step], log_probs[:, step] = drawn.tokens, drawn.log_probs
            pending = drawn.tokens
        check_finite(log_probs)
        for row, ids, values in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            row.extend(ids, values, budget=budget)
