"""Speculative decoding: a draft proposes, the target verifies many tokens in one forward.

Legend: ``B`` batch, ``K`` drafted tokens, ``T`` tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int
from selftrain.decoding.cache import SlotCache, slot_obstacle
from selftrain.decoding.drafters import Draft, ModelDraft
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import check_room, row_seeds_of, warp
from selftrain.decoding.stopping import Ending, Stopping, resolve_eos
from selftrain.nn.modes import training_mode
from selftrain.ops.philox import Stream, uniform
from selftrain.ops.verify import Verdict, verify_greedy, verify_tokens

_NOISE_WINDOW = 64  # positions whose noise is computed at once: Philox is cheap only in bulk


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

    @property
    def analytic_acceptance(self) -> float:
        """Mean probability of acceptance at the tested positions: the rate, with less noise."""
        return _ratio(self.total_overlap, self.num_tested)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over tested: estimates the mean of sum_v min(p, q)."""
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


class SpeculativeDecoder:
    """Exact speculative decoding of a target model with the help of a draft model.

    The output law is the target's own, whatever the draft: greedy output is the target's greedy
    output, sampled output has the target's distribution under the same warping. Rows of a batch
    accept different numbers of tokens and do not influence one another.
    Source: Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318.

    Args:
        target: The model to sample from: any causal model of transformers with full attention.
        draft: A smaller model over the same vocabulary.
        tokenizer: Needed for stop strings, and where the models' numbers of logits differ by
            padding.
        num_draft_tokens: Tokens proposed per block; 0 is plain decoding.

    Raises:
        TypeError: If a model cannot be driven through slots; the message says why.
        ValueError: If the vocabularies differ, or the models lie on different devices.

    Example:
        >>> from selftrain import SamplingParams, SpeculativeDecoder
        >>> decoder = SpeculativeDecoder(target, draft)  # doctest: +SKIP
        >>> output = decoder.generate(input_ids, params=SamplingParams())  # doctest: +SKIP
        >>> output.stats.block_efficiency  # doctest: +SKIP
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_draft_tokens: int = 5,
    ) -> None:
        check_int("num_draft_tokens", num_draft_tokens, low=0)
        for role, model in (("target", target), ("draft", draft)):
            obstacle = slot_obstacle(model)
            if obstacle is not None:
                raise TypeError(f"the {role} cannot be used for speculative decoding: {obstacle}.")
        if target.device != draft.device:
            raise ValueError(
                f"the target is on {target.device}, the draft on {draft.device}; "
                f"move one: draft.to({str(target.device)!r})."
            )
        _check_vocabularies(target, draft, tokenizer)
        self.target, self.draft, self.tokenizer = target, draft, tokenizer
        self.num_draft_tokens = num_draft_tokens

    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        params: SamplingParams | None = None,
        eos_token_ids: int | Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        return_blocks: bool = False,
    ) -> SpeculativeOutput:
        """Continue every row of ``input_ids``.

        Args:
            input_ids: Prompts ``[batch, time]``, padded on either side where they differ in length.
            attention_mask: 1 at the prompts' tokens, one unbroken stretch a row; default: all.
            params: How to draw; the same warping is applied to target and draft.
            eos_token_ids: Ids that end a row; default: the target's generation config, then the
                tokenizer's.
            seeds: One seed per row, in place of ``params.seed``.
            return_blocks: Also return what happened in each block.

        Raises:
            ValueError: If a prompt is empty, the mask has gaps, rows of different length have no
                mask, there is no room in a model's positions, or logits become NaN.
        """
        params = params or SamplingParams()
        prompts = _prompts(input_ids, attention_mask)
        for role, model in (("target", self.target), ("draft", self.draft)):
            check_room(prompts, params.max_new_tokens, model, role)
        per_row = None if seeds is None else [[s] for s in seeds]
        row_seeds = [s[0] for s in row_seeds_of(len(prompts), 1, params, per_row)]
        eos = resolve_eos(self.target, self.tokenizer, eos_token_ids)
        run = _Run(self, prompts, params, Stopping(eos, params.stop, self.tokenizer), row_seeds)
        with torch.inference_mode(), training_mode(False, self.target, self.draft):
            while len(run.active):
                run.block()
        new = run.new_tokens()
        return SpeculativeOutput(
            sequences=_assemble(input_ids, new, self._pad_id(eos)),
            lengths=torch.tensor([len(row) for row in new], device=input_ids.device),
            stats=run.stats(),
            blocks=tuple(run.blocks()) if return_blocks else (),
        )

    def _pad_id(self, eos: frozenset[int]) -> int:
        choices = [
            getattr(getattr(self.target, "generation_config", None), "pad_token_id", None),
            getattr(self.tokenizer, "pad_token_id", None),
            *sorted(eos),
        ]
        return next((c for c in choices if c is not None), 0)


class _Trace(NamedTuple):
    """One block of the active rows, kept on the device until somebody asks."""

    rows: Tensor
    drafted: Tensor
    verdict: Verdict


class _Run:
    """The state of one call of ``generate``; finished rows leave the batch."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompts: list[list[int]],
        params: SamplingParams,
        stopping: Stopping,
        seeds: list[int],
    ) -> None:
        self.params, self.stopping = params, stopping
        self.num_draft_tokens = decoder.num_draft_tokens
        device = decoder.target.device
        self.prompt_lengths = [len(p) for p in prompts]
        capacity = max(self.prompt_lengths) + params.max_new_tokens + self.num_draft_tokens + 1
        self.target = SlotCache(decoder.target, capacity=capacity)
        self.target.prefill([p[:-1] for p in prompts])
        self.draft: ModelDraft | None = None
        if self.num_draft_tokens:
            self.draft = ModelDraft(
                decoder.draft,
                prompts,
                capacity=capacity,
                vocab_size=_num_logits(decoder.target),
                params=params,
            )
        self.tokens = torch.zeros(len(prompts), capacity, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            self.tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self.lengths = torch.tensor(self.prompt_lengths, device=device)
        self.limits = self.lengths + params.max_new_tokens
        self.active = torch.arange(len(prompts), device=device)
        self.eos = torch.tensor(sorted(stopping.eos_token_ids), dtype=torch.long, device=device)
        self.noise = _Noise(torch.tensor(seeds, device=device), self.num_draft_tokens + 1)
        self.finished: dict[int, list[int]] = {}
        self.trace: list[_Trace] = []

    def block(self) -> None:
        """Draft, verify, commit, and let finished rows go."""
        lengths, limits = self.lengths, self.limits
        extent = int(lengths.max())
        room = limits - lengths  # tokens a row may still emit, at least 1
        num_drafted = min(self.num_draft_tokens, int(room.max()) - 1)
        noise = self.noise.at(lengths)[:, :, : num_drafted + 1]
        slots = torch.arange(num_drafted + 1, device=lengths.device)
        draft = self._propose(extent, noise[:, Stream.DRAFT, :num_drafted])
        # A draft beyond a row's room could only be cut off again: it is void.
        drafted = draft.tokens.masked_fill(slots[:-1] >= (room - 1).unsqueeze(1), -1)

        pending = self.tokens.gather(1, (lengths - 1).unsqueeze(1))
        positions = (lengths - 1).unsqueeze(1) + slots
        logits = self.target.forward(
            torch.cat([pending, draft.tokens], dim=1),
            torch.minimum(positions, (limits - 1).unsqueeze(1)),
            extent=extent + num_drafted,
        )
        if logits.amax(-1).isnan().any():
            raise ValueError(
                "the target's logits are NaN; check its weights and dtype "
                "(float16 overflows where bfloat16 does not)."
            )
        verdict = self._verify(logits, draft, drafted, noise)
        self.trace.append(_Trace(self.active, drafted, verdict))
        self._commit(drafted, verdict)

    def _propose(self, extent: int, uniforms: Tensor) -> Draft:
        if uniforms.shape[1] == 0 or self.draft is None:
            return Draft(self.tokens.new_zeros(len(self.active), 0), None)
        return self.draft.propose(
            self.tokens, self.lengths, self.limits - 1, extent=extent, uniforms=uniforms
        )

    def _verify(self, logits: Tensor, draft: Draft, drafted: Tensor, noise: Tensor) -> Verdict:
        if self.params.greedy:
            return verify_greedy(logits, drafted)
        target_logits = warp(logits, self.params)
        draft_logits = draft.logits
        if draft_logits is None:  # nothing drafted
            draft_logits = target_logits[:, :0]
        return verify_tokens(
            target_logits,
            draft_logits,
            drafted,
            accept_uniforms=noise[:, Stream.ACCEPT, : drafted.shape[1]],
            emit_uniforms=noise[:, Stream.EMIT],
        )

    def _commit(self, drafted: Tensor, verdict: Verdict) -> None:
        """Append what stands and the next token; retire rows that are done."""
        accepted = verdict.num_accepted.unsqueeze(1)
        block = torch.nn.functional.pad(drafted, (0, 1)).scatter(
            1, accepted, verdict.next_tokens.unsqueeze(1)
        )
        slots = torch.arange(block.shape[1], device=block.device)
        # What lies beyond the next token is overwritten by the next block before it is read.
        self.tokens.scatter_(1, self.lengths.unsqueeze(1) + slots, block.clamp(min=0))
        ended = (torch.isin(block, self.eos) & (slots <= accepted)).any(1)
        self.lengths = torch.minimum(self.lengths + verdict.num_accepted + 1, self.limits)
        done = (ended | (self.lengths >= self.limits)).tolist()
        if self.stopping.stop:
            done = [
                d or self._ending(row, tokens, length).reason is not None
                for d, row, tokens, length in zip(
                    done,
                    self.active.tolist(),
                    self.tokens.tolist(),
                    self.lengths.tolist(),
                    strict=True,
                )
            ]
        if any(done):
            self._retire(done)

    def _retire(self, done: list[bool]) -> None:
        ready = torch.tensor(done, device=self.active.device)
        for row, tokens, length in zip(
            self.active[ready].tolist(),
            self.tokens[ready].tolist(),
            self.lengths[ready].tolist(),
            strict=True,
        ):
            start = self.prompt_lengths[row]
            keep = self._ending(row, tokens, length).num_tokens
            self.finished[row] = tokens[start : start + keep]
        rows = (~ready).nonzero().squeeze(1)
        self.active, self.tokens = self.active[rows], self.tokens[rows]
        self.lengths, self.limits = self.lengths[rows], self.limits[rows]
        self.noise.select(rows)
        self.target.select(rows)
        if self.draft is not None:
            self.draft.select(rows)

    def _ending(self, row: int, tokens: list[int], length: int) -> Ending:
        new = tokens[self.prompt_lengths[row] : length]
        return self.stopping.ending(new, budget=self.params.max_new_tokens)

    def new_tokens(self) -> list[list[int]]:
        return [self.finished[row] for row in range(len(self.prompt_lengths))]

    def stats(self) -> SpeculativeStats:
        calls = drafted = tested = accepted = 0
        overlap = 0.0
        for _, tokens, verdict in self.trace:
            proposed = (tokens >= 0).sum(1)
            tests = torch.minimum(verdict.num_accepted + 1, proposed)
            visited = torch.arange(tokens.shape[1], device=tokens.device) < tests.unsqueeze(1)
            calls += len(tokens)
            drafted += int(proposed.sum())
            tested += int(tests.sum())
            accepted += int(verdict.num_accepted.sum())
            overlap += float((verdict.overlap * visited).sum())
        return SpeculativeStats(
            num_target_calls=calls,
            num_drafted=drafted,
            num_tested=tested,
            num_accepted=accepted,
            total_overlap=overlap,
        )

    def blocks(self) -> list[Block]:
        return [
            Block(row, tuple(t for t in drafted if t >= 0), accepted, token)
            for rows, tokens, verdict in self.trace
            for row, drafted, accepted, token in zip(
                rows.tolist(),
                tokens.tolist(),
                verdict.num_accepted.tolist(),
                verdict.next_tokens.tolist(),
                strict=True,
            )
        ]


class _Noise:
    """Uniforms ``[row, stream, slot]`` for a block that starts at a given position of each row.

    Keyed by the block's start and the slot, never by the token's own position: a position that is
    drafted again in a later block then meets fresh noise (specdec, section 4).
    """

    def __init__(self, seeds: Tensor, num_slots: int) -> None:
        self.seeds, self.num_slots = seeds, num_slots
        self.first = torch.full_like(seeds, -_NOISE_WINDOW)
        self.table = torch.empty(0)

    def at(self, starts: Tensor) -> Tensor:
        offset = starts - self.first
        if int(offset.max()) >= _NOISE_WINDOW:
            self.first, offset = starts, torch.zeros_like(starts)
            device = starts.device
            window = torch.arange(_NOISE_WINDOW, device=device)
            self.table = uniform(
                self.seeds.view(-1, 1, 1, 1),
                stream=torch.arange(len(Stream), device=device).view(-1, 1),
                position=(starts.unsqueeze(1) + window).view(-1, _NOISE_WINDOW, 1, 1),
                slot=torch.arange(self.num_slots, device=device),
            )
        return self.table[torch.arange(len(starts), device=starts.device), offset]

    def select(self, rows: Tensor) -> None:
        self.seeds, self.first, self.table = self.seeds[rows], self.first[rows], self.table[rows]


def _prompts(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids must be [batch, time] and not empty, got {input_ids.shape}.")
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, "
            f"input_ids {tuple(input_ids.shape)}; they must be equal."
        )
    mask = attention_mask.bool()
    starts_per_row = (mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]).sum(1)
    for row, starts in enumerate(starts_per_row.tolist()):
        if starts != 1:
            what = "is all zeros: the prompt is empty" if starts == 0 else "has gaps"
            raise ValueError(f"attention_mask[{row}] {what}; one unbroken stretch of 1 is needed.")
    return [ids[m].tolist() for ids, m in zip(input_ids, mask, strict=True)]


def _assemble(input_ids: Tensor, new: list[list[int]], pad_id: int) -> Tensor:
    longest = max(map(len, new))
    padded = [[*row, *([pad_id] * (longest - len(row)))] for row in new]
    return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device)], dim=1)


def _num_logits(model: PreTrainedModel) -> int:
    return model.config.get_text_config(decoder=True).vocab_size


def _check_vocabularies(
    target: PreTrainedModel, draft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Allow different numbers of logits only where a tokenizer shows the rest to be padding."""
    target_size, draft_size = _num_logits(target), _num_logits(draft)
    if target_size == draft_size:
        return
    used = None if tokenizer is None else len(tokenizer)
    if used is None or min(target_size, draft_size) < used:
        raise ValueError(
            f"the target has {target_size} logits, the draft {draft_size}. Speculative decoding "
            "needs one vocabulary. If the difference is padding, pass the common tokenizer"
            + ("." if used is None else f" (the one passed has {used} tokens).")
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
