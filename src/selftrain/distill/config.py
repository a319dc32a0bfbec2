"""Settings of distillation, with the published methods as presets."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain.decoding.params import SamplingParams
from selftrain.ops.divergence_formulas import DIVERGENCES, JSDScale, resolve
from selftrain.training.optim import OptimConfig
from selftrain.training.settings import Normalize, check_step_settings

Objective = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "skew_kl",
    "skew_reverse_kl",
    "amari",
    "nll",
]
Source = Literal["student", "dataset", "teacher"]
_OBJECTIVES = (*DIVERGENCES, "nll")
_WITH_ALPHA = ("skew_kl", "skew_reverse_kl", "amari")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student learns from a teacher; the default is on-policy GKD with the balanced JSD."""

    divergence: Objective = "jsd"
    """What is minimised at every token, or "nll": -log q of the token in the text."""
    beta: float | None = None
    """The teacher's weight in the mixture of "jsd", in [0, 1]; None: 0.5. Only for "jsd"."""
    alpha: float | None = None
    """The skew of "skew_kl" and "skew_reverse_kl" (None: 0.1), the order of "amari" (None: 0.5)."""
    divergence_schedule: tuple[tuple[float, Objective], ...] = ()
    """What to minimise instead from a share of the steps on: ``((0.5, "total_variation"),)``."""
    tail: bool = True
    """Whether what a top-k teacher says nothing of counts as one more token, or not at all."""
    max_token_divergence: float | None = None
    """A token that is farther than this from the teacher counts as much, without gradient."""
    jsd_scale: JSDScale = "paper"
    """"paper": equation 1 of GKD; "unit": divided by beta (1 - beta). Only for "jsd"."""
    on_policy_fraction: float = 1.0
    """The paper's lambda: the share of text sampled from the current student, in [0, 1]."""
    mixing: Literal["batch", "example"] = "batch"
    """Draw the source once per step (the paper) or for every example (lower variance)."""
    fixed_source: Literal["dataset", "teacher", "both"] = "dataset"
    """Where the other text comes from: the rows' completions, samples of the teacher, or half of
    it from either."""
    generate_every: int = 1
    """Steps whose on-policy text is sampled at once, from the student of the first of them: larger
    batches for the sampler, at the price of text that is up to so many steps old."""
    reward_weight: float = 0.0
    """1 - alpha of GKD's equation 5: 0 is distillation alone, 1 the policy gradient alone."""
    baseline: Literal["batch", "leave_one_out"] = "batch"
    """What is subtracted from a reward: the batch's mean, or that of the other rows (unbiased)."""
    normalize: Normalize = "sequence"
    """Average over the tokens of each sequence and then sequences (the paper), or all tokens."""
    loss_temperature: float = 1.0
    """Divides both models' logits in the loss; not the sampling temperature."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How completions are sampled; its seed stays None, for seeds follow from ``seed``."""
    max_prompt_tokens: int | None = None
    """Keep the last so many tokens of longer prompts; None: a prompt too long is an error."""
    num_steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 32
    """Rows per optimizer step, over all processes and micro-batches."""
    micro_batch_size: int | None = None
    """Rows per forward pass on one process; None: all of them."""
    gradient_checkpointing: bool = False
    """Compute the student's activations again in the backward pass, to save their memory."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and the learning rate."""
    seed: int = 0
    """Sets the order of the data, the sources, the samples and the dropout masks."""
    log_every: int = 10
    """Steps between rows of metrics."""
    save_every: int | None = 100
    """Steps between checkpoints; None: only after the last step."""
    eval_every: int | None = None
    """Steps between evaluations; None: only after the last step."""

    def __post_init__(self) -> None:
        check_step_settings(self)
        check_choice("divergence", self.divergence, _OBJECTIVES)
        check_choice("jsd_scale", self.jsd_scale, ("paper", "unit"))
        check_choice("mixing", self.mixing, ("batch", "example"))
        check_choice("fixed_source", self.fixed_source, ("dataset", "teacher", "both"))
        check_choice("baseline", self.baseline, ("batch", "leave_one_out"))
        check_int("generate_every", self.generate_every, low=1)
        check_range("reward_weight", self.reward_weight, low=0.0, high=1.0)
        check_range("on_policy_fraction", self.on_policy_fraction, low=0.0, high=1.0)
        check_range(
            "loss_temperature",
            self.loss_temperature,
            low=0.0,
            low_open=True,
            high=math.inf,
            high_open=True,
        )
        if self.beta is not None:
            check_range("beta", self.beta, low=0.0, high=1.0)
        if self.max_prompt_tokens is not None:
            check_int("max_prompt_tokens", self.max_prompt_tokens, low=1)
        if self.max_token_divergence is not None:
            check_range("max_token_divergence", self.max_token_divergence, low=0.0, low_open=True)
        self._check_schedule()
        for kind in self.objectives:
            if kind != "nll":  # raises where beta or alpha is out of the divergence's range
                resolve(kind, **self.parameters(kind))
        self._check_contradictions()

    def _check_schedule(self) -> None:
        last = 0.0
        for entry in self.divergence_schedule:
            if len(entry) != 2:
                raise ValueError(
                    "divergence_schedule must hold pairs (share of the steps, divergence), got "
                    f"{entry!r}."
                )
            check_range("divergence_schedule", entry[0], low=last, low_open=True, high=1.0)
            check_choice("divergence_schedule", entry[1], _OBJECTIVES)
            last = entry[0]

    def _check_contradictions(self) -> None:
        kinds = self.objectives
        for name, unset, used_by in (
            ("beta", None, ("jsd",)),
            ("jsd_scale", "paper", ("jsd",)),
            ("alpha", None, _WITH_ALPHA),
            ("loss_temperature", 1.0, DIVERGENCES),
            ("max_token_divergence", None, DIVERGENCES),
        ):
            value = getattr(self, name)
            if value != unset and not set(used_by) & set(kinds):
                raise ValueError(
                    f"{name}={value!r} has no effect with divergence={self.divergence!r}; leave it "
                    f"out, or minimise one of {', '.join(map(repr, used_by))}."
                )
        if self.sampling.seed is not None:
            raise ValueError(
                f"sampling.seed must be None, got {self.sampling.seed}: every completion's seed "
                "follows from the config's own seed. Set that one."
            )
        on_policy = self.on_policy_fraction > 0
        for name, unset in (("reward_weight", 0.0), ("generate_every", 1)):
            value = getattr(self, name)
            if value != unset and not on_policy:
                raise ValueError(
                    f"{name}={value!r} has no effect with on_policy_fraction=0: it is about text "
                    "that the student samples. Leave it out, or set on_policy_fraction."
                )
        if self.baseline != "batch" and self.reward_weight == 0:
            raise ValueError(f"baseline={self.baseline!r} has no effect with reward_weight=0.")
        if self.save_every is not None and self.save_every % self.generate_every:
            raise ValueError(
                f"save_every={self.save_every} must be a multiple of generate_every="
                f"{self.generate_every}: a run resumes where sampling begins anew."
            )

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is minimised in the course of the run."""
        return (self.divergence, *(kind for _, kind in self.divergence_schedule))

    def objective_at(self, step: int) -> Objective:
        """Return what step ``step`` (from 0) of ``num_steps`` minimises."""
        begun = [k for share, k in self.divergence_schedule if step >= share * self.num_steps]
        return begun[-1] if begun else self.divergence

    def parameters(self, kind: Objective) -> dict[str, Any]:
        """Return beta, alpha and scale as :func:`selftrain.ops.divergence` takes them."""
        alpha = self.alpha if self.alpha is not None else 0.5 if kind == "amari" else 0.1
        beta = 0.5 if self.beta is None else self.beta
        return {"beta": beta, "alpha": alpha, "scale": self.jsd_scale}

    @property
    def sources(self) -> tuple[Source, ...]:
        """The places that text can come from under this configuration."""
        student: tuple[Source, ...] = ("student",) if self.on_policy_fraction > 0 else ()
        if self.on_policy_fraction == 1:
            return student
        if self.fixed_source == "both":
            return (*student, "dataset", "teacher")
        return (*student, self.fixed_source)

    def warn_if_off_distribution(self) -> None:
        """Warn if on-policy text is not drawn from the student's own distribution."""
        plain = SamplingParams(max_new_tokens=self.sampling.max_new_tokens, stop=self.sampling.stop)
        if "student" in self.sources and self.sampling != plain:
            warnings.warn(
                "on-policy completions are sampled with "
                f"temperature={self.sampling.temperature}, top_k={self.sampling.top_k}, "
                f"top_p={self.sampling.top_p}, min_p={self.sampling.min_p}: this changes the "
                "distribution of contexts that the divergence is averaged over. The published "
                "setting is SamplingParams(temperature=1) without truncation.",
                stacklevel=3,
            )

    # The methods of GKD's table, and of DistillSpec's; change the rest with dataclasses.replace.

    @classmethod
    def sft(cls) -> Self:
        """Supervised fine-tuning: likelihood of the data set; the teacher is not asked."""
        return cls(divergence="nll", on_policy_fraction=0.0)

    @classmethod
    def seq_kd(cls) -> Self:
        """SeqKD (Kim and Rush 2016): likelihood of text sampled from the teacher."""
        return cls(divergence="nll", on_policy_fraction=0.0, fixed_source="teacher")

    @classmethod
    def supervised_kd(cls) -> Self:
        """Supervised distillation: forward KL on the data set (GKD, arXiv 2306.13649)."""
        return cls(divergence="forward_kl", on_policy_fraction=0.0)

    @classmethod
    def imit_kd(cls) -> Self:
        """ImitKD (Lin et al. 2020) as GKD states it: forward KL, half the text the student's."""
        return cls(divergence="forward_kl", on_policy_fraction=0.5)

    @classmethod
    def f_distill(cls) -> Self:
        """f-distill (Wen et al. 2023) as GKD reads it: total variation on text of both models."""
        return cls(divergence="total_variation", on_policy_fraction=0.5, fixed_source="teacher")

    @classmethod
    def on_policy_gkd(cls, divergence: Objective = "jsd", *, beta: float | None = None) -> Self:
        """On-policy GKD: all text from the student (arXiv 2306.13649)."""
        return cls(divergence=divergence, beta=beta, on_policy_fraction=1.0)

    @classmethod
    def rl_gkd(cls, divergence: Objective = "reverse_kl", *, reward_weight: float = 0.5) -> Self:
        """Distillation with a reward (GKD, equation 5): give the Distiller a ``reward``."""
        return cls(divergence=divergence, reward_weight=reward_weight)

    @classmethod
    def gkd_xsum(cls) -> Self:
        """GKD's summarisation run: 40,000 steps of on-policy JSD(0.9), its best divergence there.

        Batch size, rates and lengths are from memory of the paper; its optimizer was Adafactor.
        """
        return cls._published("jsd", 40_000, beta=0.9, prompt=1024, completion=64)

    @classmethod
    def gkd_wmt(cls) -> Self:
        """GKD's translation run: 100,000 steps of on-policy JSD(0.1); see :meth:`gkd_xsum`."""
        return cls._published("jsd", 100_000, beta=0.1, prompt=80, completion=80)

    @classmethod
    def gkd_gsm8k(cls) -> Self:
        """GKD's arithmetic run: 40,000 steps of on-policy forward KL; see :meth:`gkd_xsum`."""
        return cls._published("forward_kl", 40_000, beta=None, prompt=512, completion=320)

    @classmethod
    def _published(
        cls,
        divergence: Objective,
        num_steps: int,
        *,
        beta: float | None,
        prompt: int,
        completion: int,
    ) -> Self:
        return cls(
            divergence=divergence,
            beta=beta,
            num_steps=num_steps,
            batch_size=32,
            max_prompt_tokens=prompt,
            sampling=SamplingParams(max_new_tokens=completion),
            optim=OptimConfig(learning_rate=3e-4, warmup_steps=num_steps // 20, schedule="linear"),
        )

    @classmethod
    def draft(
        cls,
        source: Literal["draft", "target", "both", "dataset"] = "draft",
        divergence: Objective = "forward_kl",
    ) -> Self:
        """Distillation of a draft for speculative decoding (DistillSpec, arXiv 2310.08461).

        Args:
            source: Whose text: the draft's own (the paper's recommendation), the target's, half
                from either, or the data set's.
            divergence: The paper's choice depends on task and temperature: try them by
                :class:`selftrain.distill.DraftEvaluator`.
        """
        check_choice("source", source, ("draft", "target", "both", "dataset"))
        fraction = {"draft": 1.0, "both": 0.5}.get(source, 0.0)
        fixed = "dataset" if source == "dataset" else "teacher"
        return cls(divergence=divergence, on_policy_fraction=fraction, fixed_source=fixed)
