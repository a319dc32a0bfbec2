"""The loop of speculative decoding: draft, verify, commit, and let finished rows go.

Lengths and tokens are kept twice, on the host and on the device. A block reads from the device
once, when the host learns what was accepted; everything else is known to both.

Legend: ``B`` batch, ``K`` drafted tokens, ``V`` vocabulary.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from selftrain.decoding.cache import DecodingCache
from selftrain.decoding.drafters.protocol import Draft, DraftSession, Rows
from selftrain.decoding.noise import BlockNoise, Noise
from selftrain.decoding.outcome import Block, SpeculativeStats
from selftrain.decoding.pacing import Pacer
from selftrain.decoding.processing import Processor, process
from selftrain.decoding.rules import Judgement, Rule
from selftrain.decoding.stopping import StopScan
from selftrain.decoding.streaming import RowStream
from selftrain.decoding.tree import TreeSteps
from selftrain.ops.tree import TreeVerdict

_NAN = (
    "the target's logits are NaN, +inf or all -inf; check its weights and dtype "
    "(float16 overflows where bfloat16 does not)."
)


class BlockCounts:
    """What the host knows of a block, row by row."""

    def __init__(
        self, rows: list[int], outcome: list[list[int]], verdict: Judgement | TreeVerdict
    ) -> None:
        self.rows = rows
        self.accepted = [o[0] for o in outcome]
        self.next_tokens = [o[1] for o in outcome]
        self.drafted = [[t for t in o[2:] if t >= 0] for o in outcome]
        # A row tests its proposals up to the first that falls.
        self.tested = [min(a + 1, len(d)) for a, d in zip(self.accepted, self.drafted, strict=True)]
        self.num_drafted = sum(map(len, self.drafted))
        self._total_overlap: float | None = None
        self._overlap, self._distortion = verdict.overlap, getattr(verdict, "distortion", None)

    def emitted(self) -> list[list[int]]:
        """Return the tokens that each row gained, before anything is cut off."""
        rows = zip(self.drafted, self.accepted, self.next_tokens, strict=True)
        return [[*drafted[:accepted], token] for drafted, accepted, token in rows]

    def count_nodes(self, num_proposed: Tensor, verdict: TreeVerdict) -> None:
        """Count a whole tree, of which ``drafted`` is only the path that stands."""
        self.tested = verdict.tested.sum(1).tolist()
        self.num_drafted = int(num_proposed.sum())
        self._total_overlap = float(verdict.overlap.sum())

    def overlap(self) -> float:
        """Return the sum of acceptance probabilities over what was tested."""
        if self._total_overlap is not None:
            return self._total_overlap
        return sum(self._visited(self._overlap))

    def distortion(self) -> list[float]:
        """Return each row's total distance from the target's law; 0 where lossless."""
        if self._distortion is None:
            return [0.0] * len(self.rows)
        return self._visited(self._distortion)

    def _visited(self, values: Tensor) -> list[float]:
        if values.shape[1] == 0:
            return [0.0] * len(self.rows)
        pairs = zip(values.tolist(), self.tested, strict=True)
        return [sum(row[:tested]) for row, tested in pairs]


class Run:
    """The state of one call of ``generate``; finished rows leave the batch.

    Args:
        target: The target with every prompt but for its last token in its cache.
        session: The drafter at work, of chains or of trees; None where nothing is ever drafted.
        prompts: The rows.
        max_new_tokens: Most tokens that a row may gain.
        device: Where the models lie.
        rule: How tokens are drawn and judged.
        pacer: How many tokens to draft.
        seeds: One a row.
        stops: Where rows end, one scan a row.
        streams: Where new tokens go, one a row; empty for nowhere.
        processors: Logits processors, applied position by position.
    """

    def __init__(
        self,
        target: DecodingCache,
        session: DraftSession | TreeSteps | None,
        *,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        device: torch.device,
        rule: Rule,
        pacer: Pacer,
        seeds: Sequence[int],
        stops: Sequence[StopScan],
        streams: Sequence[RowStream] = (),
        processors: Sequence[Processor] = (),
    ) -> None:
        self.target, self.session, self.rule, self.pacer = target, session, rule, pacer
        self.stops, self.streams, self.processors = stops, streams, processors
        self.device = device
        self.budget = max_new_tokens
        self.new: list[list[int]] = [[] for _ in prompts]  # tokens gained, all rows
        self.active = list(range(len(prompts)))  # rows still in the batch
        width = max(map(len, prompts)) + max_new_tokens + pacer.max_draft_tokens + 1
        rows = [[*p, *([0] * (width - len(p)))] for p in prompts]
        self.prompts = prompts
        self.contexts = prompts  # what processors read before a row's new tokens
        self.tokens = torch.tensor(rows, device=device)
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.limits = self.lengths + max_new_tokens
        self.slots = torch.arange(pacer.max_draft_tokens + 1, device=device)
        block_size = pacer.max_draft_tokens
        if isinstance(session, TreeSteps):
            block_size = session.num_nodes(block_size)
        self.noise = Noise(torch.tensor(seeds, device=device), block_size + 1)
        self.counts: list[BlockCounts] = []

    def block(self) -> None:
        """Draft, verify, commit, and let finished rows go."""
        began = time.perf_counter()
        lengths = [len(self.prompts[r]) + len(self.new[r]) for r in self.active]
        rooms = [self.budget - len(self.new[r]) for r in self.active]  # at least 1
        num_drafted = min(self.pacer.next(), max(rooms) - 1)
        if num_drafted and isinstance(self.session, TreeSteps):
            counts = self._tree(self.session, lengths, num_drafted)
        else:
            num_drafted, counts = self._chain(lengths, rooms, num_drafted)
        self.counts.append(counts)
        self._retire(counts)
        if self.pacer.learns:
            self.pacer.observe(
                num_drafted,
                time.perf_counter() - began,
                num_rows=len(counts.rows),
                num_emitted=sum(counts.accepted) + len(counts.rows),
                num_tested=sum(counts.tested),
                overlap=counts.overlap(),
            )

    def _tree(self, steps: TreeSteps, lengths: list[int], depth: int) -> BlockCounts:
        """Draft a tree, verify and commit."""
        outcome = steps.block(
            Rows(self.tokens, self.lengths, self.limits - 1, tuple(lengths)),
            depth=depth,
            noise=self.noise.at(lengths, steps.num_nodes(depth) + 1),
            process=self._process_nodes if self.processors else None,
        )
        self._append(outcome.draft, self.slots[: depth + 1], outcome.verdict)
        counts = self._read(outcome.draft, outcome.verdict)
        counts.count_nodes(outcome.num_proposed, outcome.verdict)
        return counts

    def _chain(
        self, lengths: list[int], rooms: list[int], num_drafted: int
    ) -> tuple[int, BlockCounts]:
        """Draft a chain, verify and commit; return how much was drafted, and what came of it."""
        noise = self.noise.at(lengths, num_drafted + 1)
        draft = self._propose(lengths, num_drafted, noise)
        if draft.tokens.shape[1] < num_drafted:
            num_drafted = draft.tokens.shape[1]
            noise = noise.cut(num_drafted + 1)
        slots = self.slots[: num_drafted + 1]
        tight = min(rooms) <= num_drafted
        if tight:  # a proposal beyond a row's room could only be cut off again: it is void
            beyond = slots[:-1] >= (self.limits - self.lengths - 1).unsqueeze(1)
            draft = draft._replace(tokens=draft.tokens.masked_fill(beyond, -1))
        logits = self._score(draft, slots, max(lengths) + num_drafted, tight)
        verdict = self.rule.judge(logits, draft, noise)
        self._append(draft, slots, verdict)
        return num_drafted, self._read(draft, verdict)

    def _propose(self, lengths: list[int], num_drafted: int, noise: BlockNoise) -> Draft:
        if num_drafted == 0 or self.session is None or isinstance(self.session, TreeSteps):
            return Draft(self.tokens.new_zeros(len(self.active), 0), None)
        drawn: list[Tensor] = []

        def pick(logits: Tensor, slot: int) -> tuple[Tensor, Tensor | None]:
            if self.processors:
                logits = self._process(logits.unsqueeze(1), drawn).squeeze(1)
            token, law = self.rule.pick(logits, noise, slot)
            drawn.append(token)
            return token, law

        rows = Rows(self.tokens, self.lengths, self.limits - 1, tuple(lengths))
        return self.session.propose(rows, num_drafted, pick)

    def _score(self, draft: Draft, slots: Tensor, extent: int, tight: bool) -> Tensor:
        """Return the target's logits after the pending token and after each proposal."""
        pending = (self.lengths - 1).unsqueeze(1)
        positions = pending + slots
        if tight:
            positions = torch.minimum(positions, (self.limits - 1).unsqueeze(1))
        fed = torch.cat([self.tokens.gather(1, pending), draft.tokens.clamp(min=0)], dim=1)
        logits = self.target.forward(fed, positions, extent=extent)
        return self._process(logits, list(draft.tokens.unbind(1))) if self.processors else logits

    def _process(self, logits: Tensor, ahead: list[Tensor]) -> Tensor:
        """Apply the processors to ``[batch, places, vocab]``, the last after all of ``ahead``."""
        drawn = torch.stack(ahead, 1).tolist() if ahead else [[]] * len(self.active)
        prefixes = [
            [*self.contexts[r], *self.new[r], *tokens]
            for r, tokens in zip(self.active, drawn, strict=True)
        ]
        return process(self.processors, logits, prefixes, rows=self.active)

    def _process_nodes(
        self, logits: Tensor, tokens: Tensor, paths: Sequence[Sequence[int]]
    ) -> Tensor:
        """Apply the processors to places of a tree, each with the nodes on its own path."""
        prefixes = [
            [*self.contexts[r], *self.new[r], *(nodes[i] for i in path)]
            for r, nodes in zip(self.active, tokens.tolist(), strict=True)
            for path in paths
        ]
        rows = [r for r in self.active for _ in paths]
        scores = process(self.processors, logits.flatten(0, 1).unsqueeze(1), prefixes, rows=rows)
        return scores.view(*logits.shape[:2], -1)

    def _append(self, draft: Draft, slots: Tensor, verdict: Judgement | TreeVerdict) -> None:
        """Write what stands and the next token behind each row."""
        accepted = verdict.num_accepted.unsqueeze(1)
        block = torch.nn.functional.pad(draft.tokens, (0, 1)).scatter(
            1, accepted, verdict.next_tokens.unsqueeze(1)
        )
        # What lies beyond the next token is overwritten by the next block before it is read.
        self.tokens.scatter_(1, self.lengths.unsqueeze(1) + slots, block.clamp(min=0))
        self.lengths = self.lengths + verdict.num_accepted + 1

    def _read(self, draft: Draft, verdict: Judgement | TreeVerdict) -> BlockCounts:
        """Bring the outcome to the host: the one wait of a block."""
        ends = torch.stack([verdict.num_accepted, verdict.next_tokens], dim=1)
        counts = BlockCounts(self.active, torch.cat([ends, draft.tokens], 1).tolist(), verdict)
        if min(counts.next_tokens) < 0:  # the verifiers' mark of logits that are no law
            raise ValueError(_NAN)
        return counts

    def _retire(self, counts: BlockCounts) -> None:
        """Pass new tokens on and drop the rows that have ended."""
        kept = []
        for index, (row, emitted) in enumerate(zip(self.active, counts.emitted(), strict=True)):
            new = self.new[row]
            new += emitted[: self.budget - len(new)]
            num_tokens = self.stops[row].advance(new, budget=self.budget)
            if num_tokens is None:
                kept.append(index)
            else:
                del new[num_tokens:]
            if self.streams:
                self.streams[row].put(new, done=num_tokens is not None)
        if len(kept) < len(self.active):
            self.active = [self.active[i] for i in kept]
            rows = torch.tensor(kept, dtype=torch.long, device=self.device)
            self.tokens, self.lengths = self.tokens[rows], self.lengths[rows]
            self.limits = self.limits[rows]
            self.noise.select(kept)
            self.target.select(rows)
            if self.session is not None:
                self.session.select(rows)

    def stats(self, *, lossless: bool) -> SpeculativeStats:
        """Return the counts over all rows."""
        distortion = [0.0] * len(self.prompts)
        for block in self.counts:
            for row, amount in zip(block.rows, block.distortion(), strict=True):
                distortion[row] += amount
        return SpeculativeStats(
            num_target_calls=sum(len(b.rows) for b in self.counts),
            num_drafted=sum(b.num_drafted for b in self.counts),
            num_tested=sum(sum(b.tested) for b in self.counts),
            num_accepted=sum(sum(b.accepted) for b in self.counts),
            total_overlap=sum(b.overlap() for b in self.counts),
            lossless=lossless,
            tv_bound=0.0 if lossless else min(1.0, max(distortion)),
        )

    def blocks(self) -> tuple[Block, ...]:
        """Return what happened, block by block."""
        return tuple(
            Block(row, tuple(drafted), accepted, token)
            for b in self.counts
            for row, drafted, accepted, token in zip(
                b.rows, b.drafted, b.accepted, b.next_tokens, strict=True
            )
        )
