"""Speculative decoding: a draft proposes, the target verifies many tokens in one forward."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from selftrain._core.checks import check_choice, check_int
from selftrain.decoding.cache import CacheKind, CacheOpener, is_encoder_decoder
from selftrain.decoding.custom_generate import as_custom_generate
from selftrain.decoding.drafters import Drafter, DraftSession, ModelDrafter, Setting
from selftrain.decoding.drafters.model import num_logits
from selftrain.decoding.drafters.tree import TreeDrafter
from selftrain.decoding.engine import Run
from selftrain.decoding.outcome import SpeculativeOutput
from selftrain.decoding.pacing import AutoPacer, FixedPacer
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.processing import Processor, check_processors, check_scope
from selftrain.decoding.prompts import prompt_rows
from selftrain.decoding.rules import Verifier, check_lenience, rule_for
from selftrain.decoding.sampler import check_room, row_seeds_of
from selftrain.decoding.stopping import Stopping, StopScan, resolve_eos
from selftrain.decoding.streaming import RowStream, Sink, sink_of
from selftrain.decoding.tree import TreeSteps, tree_rule_for
from selftrain.kernels._dispatch import Backend
from selftrain.nn.modes import training_mode
from selftrain.ops.lenience import LenienceRule


class SpeculativeDecoder:
    """Exact speculative decoding of a target model with the help of a draft model.

    The output law is the target's own, whatever the draft (unless lenience is asked for): greedy
    output is the target's greedy output, sampled output has the target's distribution under the
    same warping. Rows of a batch accept different numbers of tokens and do not influence one
    another.
    Source: Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318.

    Args:
        target: The model to sample from: a causal or encoder-decoder model of transformers, with
            full or sliding-window attention.
        draft: A smaller model over the same vocabulary, or any other :class:`Drafter` of
            :mod:`selftrain.decoding`.
        tokenizer: Needed for stop strings, and where the models' numbers of logits differ by
            padding.
        num_draft_tokens: Tokens proposed per block; 0 is plain decoding. "auto" measures while it
            decodes and picks the number that is fastest, 0 where drafting does not pay.
        verifier: How proposals are tested at temperatures above 0. "block", the default, accepts
            most; "token" is the rule of the first papers; "coupled" gives, seed for seed, the
            tokens of plain sampling (``num_draft_tokens=0`` with the same verifier).
        lenience: A rule of :mod:`selftrain.ops` that accepts more, at the price of another output
            law: the statistics then say ``lossless=False`` and bound the distance.
        cache: "slots" keeps each token of a row at its own place, so that rolling back costs
            nothing; "dynamic" is for models that refuse it, and slower.
        backend: Where proposals are drawn and tested: "triton" kernels, "eager" torch, or "auto",
            which takes the kernels on a GPU.
        compile: Compile the models' steps with ``torch.compile``, on first use and for a minute or
            more; this decoder keeps them. The weights must not change afterwards. On a CPU it needs
            a C++ compiler, on a GPU it records CUDA graphs.

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
        draft: PreTrainedModel | Drafter | TreeDrafter,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_draft_tokens: int | Literal["auto"] = 5,
        verifier: Verifier | None = None,
        lenience: LenienceRule | None = None,
        cache: CacheKind = "slots",
        backend: Backend = "auto",
        compile: bool = False,
    ) -> None:
        if isinstance(num_draft_tokens, str):
            check_choice("num_draft_tokens", num_draft_tokens, ("auto",))
        else:
            check_int("num_draft_tokens", num_draft_tokens, low=0)
        check_choice("verifier", verifier, (None, "token", "block", "coupled"))
        check_choice("backend", backend, ("auto", "eager", "triton"))
        check_lenience(verifier, lenience)
        if compile and num_draft_tokens == "auto":
            raise ValueError(
                "compile=True makes steps of fixed size; give num_draft_tokens a number instead of "
                "'auto'."
            )
        self._caches = CacheOpener(target, cache, role="target", compile=compile)
        if isinstance(draft, torch.nn.Module):
            draft = ModelDrafter(draft, tokenizer=tokenizer, cache=cache, compile=compile)
        elif not all(hasattr(draft, name) for name in ("models", "check", "start")):
            raise TypeError(f"draft must be a model or a Drafter, got {type(draft).__name__}.")
        self.drafter: Drafter | TreeDrafter = draft
        self.drafter.check(target)
        if isinstance(self.drafter, TreeDrafter):
            depth = _check_tree(num_draft_tokens, verifier, lenience)
            num_draft_tokens = min(depth, len(self.drafter.branching))
        self.target, self.tokenizer = target, tokenizer
        self.num_draft_tokens = num_draft_tokens
        self.verifier, self.lenience = verifier, lenience
        self.backend: Backend = backend

    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        params: SamplingParams | None = None,
        eos_token_ids: int | Sequence[int] | None = None,
        logits_processor: Sequence[Processor] | None = None,
        streamer: BaseStreamer | Sink | None = None,
        seeds: Sequence[int] | None = None,
        return_blocks: bool = False,
    ) -> SpeculativeOutput:
        """Continue every row of ``input_ids``.

        Args:
            input_ids: Prompts ``[batch, time]``, padded on either side where they differ in length.
                An encoder-decoder model encodes them, and the sequences returned are its decoder's.
            attention_mask: 1 at the prompts' tokens, one unbroken stretch a row; default: all.
            params: How to draw; the same warping is applied to target and draft.
            eos_token_ids: Ids that end a row; default: the target's generation config, then the
                tokenizer's.
            logits_processor: Processors of transformers, applied before the warping to target and
                draft, at each place with the tokens before that place; rows are processed one by
                one, which costs time.
            streamer: Receives tokens once they are final: a function of (row, token_ids), or a
                streamer of transformers where there is one row.
            seeds: One seed per row, in place of ``params.seed``.
            return_blocks: Also return what happened in each block.

        Raises:
            ValueError: If a prompt is empty, the mask has gaps, rows of different length have no
                mask, there is no room in a model's positions, a processor cannot look ahead, or
                logits become NaN.
        """
        sink, finish = sink_of(streamer, input_ids) if streamer is not None else (None, None)
        output = self._decode(
            input_ids,
            attention_mask=attention_mask,
            params=params or SamplingParams(),
            eos_token_ids=eos_token_ids,
            processors=check_processors(logits_processor),
            sink=sink,
            seeds=seeds,
            return_blocks=return_blocks,
        )
        if finish is not None:
            finish()
        return output

    def as_custom_generate(
        self, *, streamer: BaseStreamer | Sink | None = None
    ) -> Callable[..., Any]:
        """Return what ``target.generate`` of transformers takes as ``custom_generate``.

        Args:
            streamer: As for :meth:`generate`; transformers does not pass its own to the loop.

        Example:
            >>> loop = decoder.as_custom_generate()  # doctest: +SKIP
            >>> target.generate(input_ids, custom_generate=loop)  # doctest: +SKIP
        """
        return as_custom_generate(self, streamer=streamer)

    def _decode(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None,
        params: SamplingParams,
        eos_token_ids: int | Sequence[int] | None,
        processors: Sequence[Processor],
        sink: Sink | None,
        seeds: Sequence[int] | None = None,
        return_blocks: bool = False,
        contexts: Sequence[Sequence[int]] | None = None,
        pad_token_id: int | None = None,
    ) -> SpeculativeOutput:
        eos = resolve_eos(self.target, self.tokenizer, eos_token_ids)
        prompts = prompt_rows(
            input_ids,
            attention_mask,
            vocab_size=num_logits(self.target),
            pad_id=self._padding(eos),
        )
        source = {}
        if is_encoder_decoder(self.target):
            check_room([input_ids[0].tolist()], 0, self.target, "target")
            # What was given is read by the encoder; the decoder's rows begin with its own token.
            start = self._decoder_start()
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            source = {"encoder_input_ids": input_ids, "encoder_attention_mask": attention_mask}
            input_ids = input_ids.new_full((len(prompts), 1), start)
            prompts = input_ids.tolist()
        check_scope(processors, len(prompts))
        check_room(prompts, params.max_new_tokens, self.target, "target")
        row_seeds = _row_seeds(len(prompts), params, seeds)
        stopping = Stopping(eos, params.stop, self.tokenizer)
        with torch.inference_mode(), training_mode(False, self.target, *self.drafter.models):
            run = self._begin(prompts, source, params, row_seeds, stopping, sink, processors)
            run.contexts = contexts or prompts
            while run.active:
                run.block()
        return SpeculativeOutput(
            sequences=_assemble(
                input_ids, run.new, self._pad_id(eos) if pad_token_id is None else pad_token_id
            ),
            lengths=torch.tensor([len(row) for row in run.new], device=input_ids.device),
            stats=run.stats(lossless=self.lenience is None or self.lenience.lossless),
            blocks=run.blocks() if return_blocks else (),
        )

    def _begin(
        self,
        prompts: list[list[int]],
        source: dict[str, Tensor],
        params: SamplingParams,
        seeds: list[int],
        stopping: Stopping,
        sink: Sink | None,
        processors: Sequence[Processor],
    ) -> Run:
        num = self.num_draft_tokens
        pacer = AutoPacer() if num == "auto" else FixedPacer(num)
        most = pacer.max_draft_tokens
        drafter = self.drafter
        block_size = drafter.num_nodes(most) if isinstance(drafter, TreeDrafter) else most
        # One row may be about to end while another has room for a whole block.
        capacity = max(map(len, prompts)) + params.max_new_tokens + block_size
        cache = self._caches.open(capacity, source, sizes=(1, most + 1))
        cache.prefill([p[:-1] for p in prompts])
        session = None
        if most:
            vocab_size = self.target.config.get_text_config(decoder=True).vocab_size
            session = self._start(Setting(prompts, capacity, params, cache, vocab_size, source))
        return Run(
            cache,
            session,
            prompts=prompts,
            max_new_tokens=params.max_new_tokens,
            device=self.target.device,
            rule=rule_for(
                params,
                self.verifier,
                self.lenience,
                backend=self.backend,
                like=next(self.target.parameters()),
            ),
            pacer=pacer,
            seeds=seeds,
            stops=[StopScan(stopping) for _ in prompts],
            streams=[RowStream(row, sink, stopping) for row in range(len(prompts))] if sink else (),
            processors=processors,
        )

    def _start(self, setting: Setting) -> DraftSession | TreeSteps:
        if isinstance(self.drafter, TreeDrafter):
            rule = tree_rule_for(setting.params, self.verifier, self.drafter.sampling)
            return TreeSteps(self.drafter.start(setting), rule)
        return self.drafter.start(setting)

    def _decoder_start(self) -> int:
        config = getattr(self.target, "generation_config", None)
        for holder in (config, self.target.config):
            start = getattr(holder, "decoder_start_token_id", None)
            if start is not None:
                return start
        raise ValueError("the target's configuration has no decoder_start_token_id to begin with.")

    def _pad_id(self, eos: frozenset[int]) -> int:
        choices = [*self._special("pad_token_id"), *sorted(eos), 0]
        return choices[0]

    def _padding(self, eos: frozenset[int]) -> int | None:
        """Return the id that marks padding; None where a prompt may well begin or end with it."""
        pad = next(iter(self._special("pad_token_id")), None)
        return None if pad in eos or pad in self._special("bos_token_id") else pad

    def _special(self, name: str) -> list[int]:
        config = getattr(self.target, "generation_config", None)
        ids = [getattr(holder, name, None) for holder in (config, self.tokenizer)]
        return [token for token in ids if token is not None]


def _check_tree(
    num_draft_tokens: int | Literal["auto"],
    verifier: Verifier | None,
    lenience: LenienceRule | None,
) -> int:
    if num_draft_tokens == "auto":
        raise ValueError("num_draft_tokens='auto' plans chains; with a TreeDrafter give the depth.")
    if verifier == "block" or lenience is not None:
        name = "verifier='block'" if verifier == "block" else "lenience"
        raise ValueError(
            f"{name} is a rule for chains; a TreeDrafter goes with verifier None, 'token' or "
            "'coupled' and no lenience."
        )
    return num_draft_tokens


def _row_seeds(num_rows: int, params: SamplingParams, seeds: Sequence[int] | None) -> list[int]:
    if seeds is None:
        return [row[0] for row in row_seeds_of(num_rows, 1, params, None)]
    if len(seeds) != num_rows:
        raise ValueError(f"seeds must hold one seed a row, {num_rows} in all; got {len(seeds)}.")
    for row, seed in enumerate(seeds):
        check_int(f"seeds[{row}]", seed, low=0, high=2**63 - 1)
    return [row[0] for row in row_seeds_of(num_rows, 1, params, [[seed] for seed in seeds])]


def _assemble(input_ids: Tensor, new: list[list[int]], pad_id: int) -> Tensor:
    longest = max(map(len, new))
    padded = [[*row, *([pad_id] * (longest - len(row)))] for row in new]
    # Rows without a single token are of no dtype by themselves.
    added = torch.tensor(padded, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, added], dim=1)
