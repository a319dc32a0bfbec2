"""Settings of distillation, with the published methods as presets."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Literal, Self

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain.decoding.params import SamplingParams
from selftrain.ops.divergence import DIVERGENCES, JSDScale
from selftrain.training.optim import OptimConfig
from selftrain.training.settings import Normalize, check_step_settings

Objective = Literal["forward_kl", "reverse_kl", "jsd", "total_variation", "nll"]
Source = Literal["student", "dataset", "teacher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student learns from a teacher; the default is on-policy GKD with the balanced JSD."""

    divergence: Objective = "jsd"
    """What is minimised at every token, or "nll": -log q of the token in the text."""
    beta: float | None = None
    """The teacher's weight in the mixture of "jsd", in [0, 1]; None: 0.5. Only for "jsd"."""
    alpha: float | None = None
    """Parameter of the skew and Amari divergences; None: 0.1. Only for those."""
    tail: bool = True
    """Whether a top-k teacher's other tokens count, as one."""
    jsd_scale: JSDScale = "paper"
    """"paper": equation 1 of GKD; "unit": divided by beta (1 - beta). Only for "jsd"."""
    on_policy_fraction: float = 1.0
    """The paper's lambda: the share of text sampled from the current student, in [0, 1]."""
    mixing: Literal["batch", "example"] = "batch"
    """Draw the source once per step (the paper) or for every example (lower variance)."""
    fixed_source: Literal["dataset", "teacher"] = "dataset"
    """Where the other text comes from: the rows' completions, or samples of the teacher."""
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
        check_choice("divergence", self.divergence, (*DIVERGENCES, "nll"))
        check_choice("jsd_scale", self.jsd_scale, ("paper", "unit"))
        check_choice("mixing", self.mixing, ("batch", "example"))
        check_choice("fixed_source", self.fixed_source, ("dataset", "teacher"))
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
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.divergence != "jsd":
            for name, unset in (("beta", None), ("jsd_scale", "paper")):
                value = getattr(self, name)
                if value != unset:
                    raise ValueError(
                        f"{name}={value!r} has no effect with divergence={self.divergence!r}; "
                        f'leave it out, or set divergence="jsd".'
                    )
        if self.divergence == "nll" and self.loss_temperature != 1:
            raise ValueError(
                f"loss_temperature={self.loss_temperature} has no effect with divergence='nll', "
                "which compares the student with the text; leave it at 1."
            )
        if self.sampling.seed is not None:
            raise ValueError(
                f"sampling.seed must be None, got {self.sampling.seed}: every completion's seed "
                "follows from the config's own seed. Set that one."
            )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The places that text can come from under this configuration."""
        student: tuple[Source, ...] = ("student",) if self.on_policy_fraction > 0 else ()
        fixed: tuple[Source, ...] = (self.fixed_source,) if self.on_policy_fraction < 1 else ()
        return student + fixed

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

    @classmethod
    def supervised_kd(cls) -> Self:
        """Supervised distillation: forward KL on the data set (GKD, arXiv 2306.13649)."""
        return cls(divergence="forward_kl", on_policy_fraction=0.0)

    @classmethod
    def on_policy_gkd(cls, divergence: Objective = "jsd", *, beta: float | None = None) -> Self:
        """On-policy GKD: all text from the student (arXiv 2306.13649)."""
        return cls(divergence=divergence, beta=beta, on_policy_fraction=1.0)

    @classmethod
    def imit_kd(cls) -> Self:
        """ImitKD (Lin et al. 2020) as GKD states it: forward KL, half the text the student's."""
        return cls(divergence="forward_kl", on_policy_fraction=0.5)

    @classmethod
    def seq_kd(cls) -> Self:
        """SeqKD (Kim and Rush 2016): likelihood of text sampled from the teacher."""
        return cls(divergence="nll", on_policy_fraction=0.0, fixed_source="teacher")

    @classmethod
    def f_distill(cls) -> Self:
        """f-distill (Wen et al. 2023) as GKD reads it: total variation on text of both models."""
        return cls(divergence="total_variation", on_policy_fraction=0.5, fixed_source="teacher")
