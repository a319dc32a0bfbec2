"""How well a draft fits its target, from one forward pass of each over the target's texts.

Source: DistillSpec, arXiv 2310.08461, section 3 and its theorem. No decoding loop is needed: what
speculative decoding would accept is a function of both models' laws along texts that the target
wrote.

Shape letters: N scored tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selftrain._core.checks import check_int, check_not_empty, check_range
from selftrain._core.rng import derive
from selftrain.decoding.cost_model import expected_tokens, predict_block_efficiency
from selftrain.decoding.params import SamplingParams
from selftrain.distill.drafts import forced_values, target_texts
from selftrain.training.batch import TokenRow

MAX_DRAFT_TOKENS = 16
"""The curve ends here, or at the longest text."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What to expect of blocks of one size."""

    num_draft_tokens: int
    """Tokens drafted per block; 0 is plain decoding."""
    block_efficiency: float
    """Tokens per target call."""
    speedup: float
    """Over plain decoding, if a draft step costs ``cost_ratio`` target calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftQuality:
    """How well a draft fits its target at one temperature, on texts that the target wrote."""

    temperature: float
    """The decoding temperature; 0: greedy, where both laws are a point."""
    num_texts: int
    """Texts that were scored."""
    num_tokens: int
    """Their tokens."""
    num_draft_tokens: int
    """Tokens per block that the block efficiencies are for."""
    cost_ratio: float
    """Cost of a draft step over that of a target call: the ratio of parameters unless given."""
    acceptance: float
    """Mean over tokens of sum_v min(p, q), the chance that a proposal there is accepted."""
    sequence_acceptance: float
    """Mean over texts of their mean acceptance, the paper's alpha."""
    greedy_agreement: float
    """Share of tokens where both models prefer the same one, whatever the temperature."""
    block_efficiency: float
    """Tokens per target call with token verification over these texts, by the renewal recursion."""
    independent_block_efficiency: float
    """What the mean acceptance would give if acceptances were independent and texts endless."""
    curve: tuple[CurvePoint, ...]
    """Blocks of 0, 1, 2, ... drafted tokens."""
    forward_kl: float
    """Mean KL(p || q) in nats, of the laws sampled from; infinite where their supports differ."""
    reverse_kl: float
    """Mean KL(q || p) in nats."""
    jsd: float
    """Mean Jensen-Shannon divergence in nats."""
    kl_bound: float
    """At most the acceptance: 1 - sqrt(KL / 2) of the smaller KL at every token, averaged."""
    jsd_bounds: tuple[float, float]
    """Around the acceptance: 1 - sqrt(2 JSD) and 1 - JSD / ln 2, averaged."""
    padded_acceptance: float
    """Mean acceptance if texts are filled up to ``params.max_new_tokens`` with certain tokens."""
    theorem_bound: float | None
    """At most ``padded_acceptance``, from the divergence on the draft's own texts; None without."""

    @property
    def mbsu(self) -> float:
        """Gain over plain decoding at ``num_draft_tokens``; memory-bound unless a cost was given.

        The memory-bound speed-up takes time to be proportional to the parameters that are read.
        """
        return self.block_efficiency / (self.num_draft_tokens * self.cost_ratio + 1)

    @property
    def best(self) -> CurvePoint:
        """The point of the curve with the largest speed-up, the smallest block among equals."""
        return max(self.curve, key=lambda p: (round(p.speedup, 12), -p.num_draft_tokens))

    def metrics(self) -> dict[str, float]:
        """Return the numbers to choose and to log by."""
        names = ("block_efficiency", "acceptance", "sequence_acceptance", "greedy_agreement")
        return {
            **{name: getattr(self, name) for name in names},
            "mbsu": self.mbsu,
            "best_num_draft_tokens": float(self.best.num_draft_tokens),
            "best_mbsu": self.best.speedup,
        }


def draft_quality(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    texts: Sequence[TokenRow],
    *,
    params: SamplingParams | None = None,
    num_draft_tokens: int = 7,
    cost_ratio: float | None = None,
    draft_texts: Sequence[TokenRow] | None = None,
    micro_batch_size: int = 16,
) -> DraftQuality:
    r"""Judge a draft along texts of the target, one forward pass of each model.

    Along a text y of the target, the draft's proposal at t would be accepted with probability
    :math:`\alpha_t = \sum_v \min(p_v, q_v)`; that ``y_t`` itself came from the draft has
    probability :math:`\min(1, q(y_t) / p(y_t))`, from which the block efficiency of token
    verification follows exactly (:func:`selftrain.decoding.predict_block_efficiency`).

    With ``draft_texts`` the paper's theorem is evaluated: if the mean over T tokens of the total
    variation is :math:`\epsilon` on the draft's texts, then on the target's
    :math:`E[\alpha] \ge 1 - T \epsilon`, shorter texts counting as filled up to T =
    ``params.max_new_tokens``. The bound is loose, and often says nothing.

    Args:
        target: The target model, decoder-only or encoder-decoder.
        draft: The draft model, of the same kind.
        texts: Prompts with completions that the target drew under ``params``
            (:func:`selftrain.distill.target_texts`); masked tokens are not judged.
        params: How tokens are drawn; None: the default, temperature 1.
        num_draft_tokens: Tokens drafted per block.
        cost_ratio: Time of a draft step over that of a target call; None: the ratio of the numbers
            of parameters, which makes speed-ups the paper's MBSU.
        draft_texts: The same of texts that the draft wrote, for the theorem.
        micro_batch_size: Texts per forward pass; the logits of so many are in memory, for both
            models. The result does not depend on it.

    Raises:
        ValueError: If there is no text, or none with a token, or a number is out of range.
    """
    params = params or SamplingParams()
    check_int("num_draft_tokens", num_draft_tokens, low=0)
    if cost_ratio is None:
        cost_ratio = draft.num_parameters() / target.num_parameters()
    check_range("cost_ratio", cost_ratio, low=0.0, high=math.inf, high_open=True)
    values = _scored(target, draft, texts, params, micro_batch_size, "texts")
    per_text = [row["acceptance"] for row in values]
    merged = {name: torch.cat([row[name] for row in values]) for name in values[0]}
    forced = [row["forced"] for row in values]
    length = max(params.max_new_tokens, max(map(len, forced)))
    bound = None
    if draft_texts is not None:
        own = _scored(target, draft, draft_texts, params, micro_batch_size, "draft_texts")
        length = max(length, max(len(row["forced"]) for row in own))
        distance = 1 - _padded([row["acceptance"] for row in own], length)
        bound = max(0.0, 1 - length * distance)
    acceptance = float(merged["acceptance"].mean())
    kl = torch.minimum(merged["forward_kl"], merged["reverse_kl"])
    return DraftQuality(
        temperature=params.temperature,
        num_texts=len(values),
        num_tokens=len(merged["acceptance"]),
        num_draft_tokens=num_draft_tokens,
        cost_ratio=cost_ratio,
        acceptance=acceptance,
        sequence_acceptance=float(torch.stack([a.mean() for a in per_text]).mean()),
        greedy_agreement=float(merged["top1_agreement"].mean()),
        block_efficiency=predict_block_efficiency(forced, num_draft_tokens, whole_texts=True),
        independent_block_efficiency=expected_tokens(min(1.0, acceptance), num_draft_tokens),
        curve=_curve(forced, cost_ratio),
        **{name: float(merged[name].mean()) for name in ("forward_kl", "reverse_kl", "jsd")},
        kl_bound=float((1 - (kl / 2).sqrt()).clamp(min=0).mean()),
        jsd_bounds=(
            float((1 - (2 * merged["jsd"]).sqrt()).clamp(min=0).mean()),
            float((1 - merged["jsd"] / math.log(2)).mean()),
        ),
        padded_acceptance=_padded(per_text, length),
        theorem_bound=bound,
    )


class DraftEvaluator:
    """Judges drafts of one target at the deployment's sampling: the measure to choose them by.

    A draft that writes well and a draft that the target agrees with are not the same one, so
    checkpoints and settings are chosen by block efficiency. The target writes its texts once, when
    first asked; every draft is then judged along the same texts, in one forward pass of each model.

    Args:
        target: The target model.
        prompts: Token ids of held-out prompts.
        params: How the deployment draws tokens; its temperature above all.
        num_draft_tokens: Tokens drafted per block.
        cost_ratio: As for :func:`draft_quality`.
        seed: The texts are a function of it.
        micro_batch_size: As for :func:`draft_quality`.

    Raises:
        ValueError: If there is no prompt.

    Example:
        >>> evaluate = DraftEvaluator(target, prompts, params=params)  # doctest: +SKIP
        >>> best = max(drafts, key=lambda d: evaluate(d)["block_efficiency"])  # doctest: +SKIP
    """

    def __init__(
        self,
        target: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        params: SamplingParams | None = None,
        num_draft_tokens: int = 7,
        cost_ratio: float | None = None,
        seed: int = 0,
        micro_batch_size: int = 16,
    ) -> None:
        check_not_empty("prompts", prompts)
        self.target, self.prompts = target, [tuple(prompt) for prompt in prompts]
        self.params = params or SamplingParams()
        self.num_draft_tokens, self.cost_ratio = num_draft_tokens, cost_ratio
        self.seed, self.micro_batch_size = seed, micro_batch_size
        self._texts: list[TokenRow] | None = None

    @property
    def texts(self) -> list[TokenRow]:
        """What the target wrote after every prompt."""
        if self._texts is None:
            written = target_texts(
                self.target, self.prompts, params=self.params, seed=derive(self.seed, "judge")
            )
            self._texts = [
                TokenRow(prompt_ids=prompt, completion_ids=text)
                for prompt, text in zip(self.prompts, written, strict=True)
            ]
        return self._texts

    def quality(self, draft: PreTrainedModel) -> DraftQuality:
        """Return everything :func:`draft_quality` finds."""
        return draft_quality(
            self.target,
            draft,
            self.texts,
            params=self.params,
            num_draft_tokens=self.num_draft_tokens,
            cost_ratio=self.cost_ratio,
            micro_batch_size=self.micro_batch_size,
        )

    def __call__(self, draft: PreTrainedModel) -> dict[str, float]:
        """Return the numbers to log and to choose by; see :meth:`DraftQuality.metrics`."""
        return self.quality(draft).metrics()


def _scored(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    texts: Sequence[TokenRow],
    params: SamplingParams,
    micro_batch_size: int,
    name: str,
) -> list[dict[str, Tensor]]:
    """Return the values of the texts that have a token to judge."""
    check_not_empty(name, texts)
    values = forced_values(
        target, draft, texts, params=params, micro_batch_size=micro_batch_size, detailed=True
    )
    kept = [row for row in values if len(row["forced"])]
    if not kept:
        raise ValueError(f"{name} has {len(texts)} texts, but none with a token to judge.")
    return kept


def _curve(forced: Sequence[Tensor], cost_ratio: float) -> tuple[CurvePoint, ...]:
    longest = min(MAX_DRAFT_TOKENS, max(map(len, forced)))
    points = []
    for num in range(longest + 1):
        efficiency = predict_block_efficiency(forced, num, whole_texts=True)
        points.append(CurvePoint(num, efficiency, efficiency / (num * cost_ratio + 1)))
    return tuple(points)


def _padded(acceptances: Sequence[Tensor], length: int) -> float:
    """Return the mean acceptance over texts filled up to ``length`` with accepted tokens."""
    rejected = torch.stack([(1 - acceptance).sum() for acceptance in acceptances])
    return float(1 - rejected.mean() / length)
