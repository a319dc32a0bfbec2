"""Log-probabilities of whole completions, and objectives that are weighted sums of them.

A forward pass ends at the last hidden states. The log-probabilities are numbers without a graph;
once the weight of each is known, the objective is built on the same hidden states, a chunk of
tokens at a time, so that no logits of a whole batch are ever kept.

Shape letters: B rows, N scored tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from selftrain.decoding.cache import PromptCache, prompts_obstacle
from selftrain.ops.linear_divergence import linear_cross_entropy
from selftrain.training.batch import MicroBatch, TokenRow, collate
from selftrain.training.heads import Scorer
from selftrain.training.targets import HiddenTargets, LogitTargets
from selftrain.training.updates import decoder_start_id

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_CHUNK_ELEMENTS = 2**24  # logits in float32 at once, where they cannot be made from hidden states
# Two passes cost more than one: prompts are shared where that saves this part of all tokens.
_WORTHWHILE = 0.1


@dataclass(frozen=True, slots=True)
class RowScores:
    """The outcome of one forward pass over rows."""

    batch: MicroBatch
    """The rows as the model read them."""
    scores: HiddenTargets | LogitTargets
    """Of the scored tokens, with the graph if gradients were enabled."""

    @torch.no_grad()
    def log_probs(self) -> Tensor:
        """Return the sum of the log-probabilities of each row's scored tokens, float64 ``[B]``."""
        labels_N = self.batch.labels
        if isinstance(self.scores, HiddenTargets):
            ones_N = torch.ones(len(labels_N), device=labels_N.device)
            hidden, head = self.scores.hidden, self.scores.head
            values = linear_cross_entropy(hidden, head, labels_N, ones_N, measure=False).values
            nll_N = values["loss"]
        else:
            nll_N = _chunked_nll(self.scores.logits, labels_N)
        # Summed in float64: a margin is a difference of sums that may have hundreds of terms.
        zeros_B = torch.zeros(len(self.batch.counts), dtype=torch.float64, device=labels_N.device)
        return zeros_B.index_add(0, self.batch.rows, -nll_N.double())

    def objective(self, weights_B: Tensor) -> Tensor:
        """Return the sum over rows of weight times log-probability, a scalar with its graph."""
        weights_N = weights_B.to(self.batch.labels.device)[self.batch.rows].neg()
        labels_N = self.batch.labels
        if isinstance(self.scores, HiddenTargets):
            hidden, head = self.scores.hidden, self.scores.head
            return linear_cross_entropy(hidden, head, labels_N, weights_N, measure=False).loss
        nll_N = _chunked_nll(self.scores.logits, labels_N)
        return (nll_N * weights_N.to(nll_N.dtype)).sum()


class RowScorer:
    """Runs a model on rows; prompts that several rows share are read once where that is exact.

    The model has to be in evaluation mode.

    Args:
        module: The model, before it is wrapped for several processes.
        accelerator: Whose processes it runs on.
        share_prompts: Whether prompts may be shared. The result differs by rounding only.
    """

    def __init__(
        self, module: nn.Module, accelerator: Accelerator, *, share_prompts: bool = True
    ) -> None:
        self._module = module
        self._device = accelerator.device
        self._start_id = decoder_start_id(getattr(module, "config", None))
        sharded = accelerator.distributed_type in _SHARDED
        self._scorer = Scorer(module, hidden=not sharded)
        self.shares = share_prompts and not sharded and prompts_obstacle(module) is None
        """Whether prompts are shared where that saves tokens."""

    def __call__(self, model: nn.Module, rows: Sequence[TokenRow]) -> RowScores:
        """Run ``model``, which is the module or its wrapper, on the rows."""
        if self.shares and _saved_fraction(rows) >= _WORTHWHILE:
            return self._shared(model, rows)
        batch = collate(rows, decoder_start_id=self._start_id).to(self._device)
        return RowScores(batch, self._scorer(model, batch))

    def _shared(self, model: nn.Module, rows: Sequence[TokenRow]) -> RowScores:
        """Go on from prompts but for their last tokens, which predict the first scored ones."""
        numbers: dict[tuple[int, ...], int] = {}
        prompts_B = [numbers.setdefault(row.prompt_ids[:-1], len(numbers)) for row in rows]
        prompts = PromptCache(self._module, list(numbers))
        rests = [
            TokenRow(
                prompt_ids=row.prompt_ids[-1:], completion_ids=row.completion_ids, mask=row.mask
            )
            for row in rows
        ]
        batch = collate(rests).to(self._device)
        more = prompts.inputs(
            torch.tensor(prompts_B, device=self._device), batch.inputs["attention_mask"]
        )
        batch.inputs.update(more)
        return RowScores(batch, self._scorer(model, batch))


def token_batches(
    rows: Sequence[TokenRow], max_tokens: int, *, by_prompt: bool = False
) -> list[list[int]]:
    """Return the rows' numbers in batches, long rows first.

    A batch, padded to its longest row, has at most ``max_tokens`` tokens, or is one row.

    Args:
        rows: The rows.
        max_tokens: See above.
        by_prompt: Keep rows of one prompt together, rather than rows of like length.
    """
    longest: dict[tuple[int, ...], int] = {}
    for row in rows:
        longest[row.prompt_ids] = max(longest.get(row.prompt_ids, 0), row_length(row))

    def place(i: int) -> tuple[int, tuple[int, ...], int]:
        row = rows[i]
        if not by_prompt:
            return -row_length(row), (), 0
        return -longest[row.prompt_ids], row.prompt_ids, -row_length(row)

    batches: list[list[int]] = []
    for i in sorted(range(len(rows)), key=place):
        if batches:
            width = max(row_length(rows[i]), row_length(rows[batches[-1][0]]))
            if (len(batches[-1]) + 1) * width <= max_tokens:
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches


def row_length(row: TokenRow) -> int:
    """Return how many tokens the model reads."""
    return max(1, len(row.prompt_ids) + len(row.completion_ids))


def _saved_fraction(rows: Sequence[TokenRow]) -> float:
    """Return the part of all tokens that need not be read again; 0 where a prompt has no rest."""
    if min(len(row.prompt_ids) for row in rows) < 2:
        return 0.0
    distinct = sum(map(len, {row.prompt_ids for row in rows}))
    saved = sum(len(row.prompt_ids) for row in rows) - distinct
    return saved / sum(map(row_length, rows))


def _chunked_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Return -log q of the labels in float32, a chunk of tokens at a time."""
    size = max(1, _CHUNK_ELEMENTS // max(1, logits_NV.shape[1]))
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    parts = [
        F.cross_entropy(chunk.to(dtype), labels, reduction="none")
        for chunk, labels in zip(logits_NV.split(size), labels_N.split(size), strict=True)
    ]
    return torch.cat(parts)
