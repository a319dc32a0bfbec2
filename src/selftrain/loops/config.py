"""Settings of the self-training loops, with the published ones by name."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain.decoding.params import SamplingParams
from selftrain.loops.dedupe import DedupeName
from selftrain.training.finetune import FinetuneConfig
from selftrain.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ImproveConfig:
    """How a model is trained on the selected samples; the papers do not publish theirs."""

    num_epochs: float = 3.0
    """Passes over the selected samples."""
    first_steps: int | None = None
    """Optimizer steps of round 0 instead of epochs (STaR: 40)."""
    step_growth: float = 1.2
    """What the steps are multiplied by from round to round, where ``first_steps`` is given."""
    batch_size: int = 32
    """Rows per optimizer step, over all processes."""
    micro_batch_size: int | None = None
    """Rows per forward pass on one process; None: all of them."""
    normalize: Literal["sequence", "token"] = "token"
    """"token" is the sum over tokens of REST-EM's objective; "sequence" normalises by length."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer and the learning rate, begun afresh in every round."""
    evaluations: int = 3
    """How often the validation problems are tried in a round, the last step included."""
    patience: int | None = 1
    """Evaluations without a better one after which a round's training stops; None: never."""
    log_every: int = 10
    """Steps between rows of metrics."""

    def __post_init__(self) -> None:
        check_range("num_epochs", self.num_epochs, low=0.0, low_open=True)
        check_int("batch_size", self.batch_size, low=1)
        check_int("evaluations", self.evaluations, low=1)
        check_range("step_growth", self.step_growth, low=1.0)
        for name in ("first_steps", "patience"):
            value = getattr(self, name)
            if value is not None:
                check_int(name, value, low=1)
        self.for_rows(1, round=0, seed=0)  # checks the rest

    def for_rows(self, num_rows: int, *, round: int, seed: int) -> FinetuneConfig:
        """Return the settings of one round's training on so many rows."""
        steps = math.ceil(num_rows * self.num_epochs / self.batch_size)
        if self.first_steps is not None:
            steps = round_up(self.first_steps * self.step_growth**round)
        every = math.ceil(steps / self.evaluations)
        return FinetuneConfig(
            num_steps=steps,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            normalize=self.normalize,
            optim=self.optim,
            seed=seed,
            log_every=self.log_every,
            save_every=every,
            eval_every=every,
            patience=self.patience,
        )


def round_up(steps: float) -> int:
    """Return the smallest whole number not below ``steps``, but for rounding errors."""
    return math.ceil(steps - 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How a model is measured on problems after a round."""

    num_samples: int = 0
    """Completions of each problem for pass@k and majority votes; 0: the greedy one only."""
    sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_new_tokens=512, temperature=1.0, top_p=0.95)
    )
    """How those are drawn (REST-EM measures pass@k so); the greedy one shares its length."""

    def __post_init__(self) -> None:
        check_int("num_samples", self.num_samples, low=0)
        if self.num_samples > 1 and self.sampling.greedy:
            raise ValueError(
                f"num_samples={self.num_samples} at temperature 0 would be that many copies of one "
                "text; raise the temperature."
            )
        _check_unseeded("sampling", self.sampling)

    @property
    def greedy(self) -> SamplingParams:
        """The same, but the most likely text."""
        return replace(self.sampling, temperature=0.0, top_k=None, top_p=1.0, min_p=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReSTEMConfig:
    """Settings of a self-training loop; the default is ReST-EM (arXiv 2312.06585) on MATH."""

    num_rounds: int = 3
    """Rounds of sampling and training."""
    num_samples: int = 32
    """Completions of each problem in a round."""
    sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(max_new_tokens=512, temperature=0.7, top_k=40)
    )
    """How they are drawn."""
    cap: int | None = 10
    """Most samples of one problem that are trained on, chosen at random; None: all."""
    min_score: float = 1.0
    """The least score that is good enough to train on."""
    dedupe: DedupeName | None = None
    """By what samples of a problem count as one. Off in ReST-EM, for a reason: a solution that
    comes up often is more likely to be right all the way, and repetition keeps that weight."""
    weighting: Literal["sample", "problem"] = "sample"
    """Whether samples weigh alike (the paper's objective) or problems do (exact EM)."""
    keep_truncated: bool = False
    """Whether to train on completions that were cut off by the token budget."""
    restart: Literal["base", "last"] = "base"
    """The weights a round's training starts from: the first ones (ReST-EM), or the last (ReST)."""
    data: Literal["round", "all"] = "round"
    """Train on this round's samples, or on those of all rounds so far."""
    with_solutions: bool = False
    """Whether to train on the problems' own solutions as well."""
    solutions_first: bool = False
    """Whether to train the first policy on the problems' solutions before the first round."""
    rationalize: bool = False
    """Whether to try unsolved problems again with a hint, and train without it (STaR)."""
    patience: int | None = 1
    """Rounds without a better validation score after which the loop ends; None: never."""
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    """How a round trains."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How a round is measured."""
    chunk_size: int = 16
    """Problems sampled and written together; what a crash can cost at most."""
    batch_size: int = 64
    """Rows decoded together by the in-process sampler."""
    seed: int = 0
    """Everything random in the run follows from it."""

    def __post_init__(self) -> None:
        for name in ("num_rounds", "num_samples", "chunk_size", "batch_size"):
            check_int(name, getattr(self, name), low=1)
        for name in ("cap", "patience"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), low=1)
        check_range("min_score", self.min_score, low=0.0, high=1.0)
        check_choice("dedupe", self.dedupe, (None, *get_args(DedupeName)))
        check_choice("weighting", self.weighting, ("sample", "problem"))
        check_choice("restart", self.restart, ("base", "last"))
        check_choice("data", self.data, ("round", "all"))
        check_int("seed", self.seed, low=0, high=2**63 - 1)
        if self.sampling.greedy and self.num_samples > 1:
            raise ValueError(
                f"num_samples={self.num_samples} at temperature 0 would be that many copies of one "
                "text; set num_samples=1 or raise the temperature."
            )
        _check_unseeded("sampling", self.sampling)

    def chunk_for(self, num_samples: int) -> int:
        """Return how many problems make a chunk of as many rows where others are drawn of each."""
        return max(1, self.chunk_size * self.num_samples // num_samples)

    @classmethod
    def paper_math(cls) -> Self:
        """Return ReST-EM's settings for MATH (2312.06585, section 5): 32 samples, cap 10."""
        return cls()

    @classmethod
    def paper_apps(cls) -> Self:
        """Return ReST-EM's settings for APPS: 64 samples, cap 10; the second round regresses."""
        return cls(num_samples=64, num_rounds=2)

    @classmethod
    def rest(cls) -> Self:
        """Return ReST (2308.08998) as an ablation: from the last weights, human data in the mix."""
        return cls(restart="last", with_solutions=True, solutions_first=True)

    @classmethod
    def star(cls) -> Self:
        """Return STaR (2203.14465): one greedy attempt, hints, from the base, growing steps."""
        return cls(
            num_rounds=10,
            num_samples=1,
            sampling=SamplingParams(max_new_tokens=512, temperature=0.0),
            cap=None,
            rationalize=True,
            improve=ImproveConfig(first_steps=40, step_growth=1.2),
        )

    @classmethod
    def star_dagger(cls) -> Self:
        """Return the STaR† of the V-STaR paper (2402.06457): 16 samples, all data so far."""
        return cls.vstar()

    @classmethod
    def rft(cls) -> Self:
        """Return RFT (2308.01825): 100 samples once, one a list of equations, and SFT data."""
        return cls(
            num_rounds=1,
            num_samples=100,
            sampling=SamplingParams(max_new_tokens=512, temperature=0.7),
            cap=None,
            dedupe="equations",
            with_solutions=True,
            solutions_first=True,
        )

    @classmethod
    def vstar(cls) -> Self:
        """Return V-STaR's generator loop (2402.06457): 16 samples, 3 rounds, all data so far."""
        return cls(
            num_rounds=3,
            num_samples=16,
            sampling=SamplingParams(max_new_tokens=512, temperature=0.7),
            cap=None,
            dedupe="text",
            data="all",
            with_solutions=True,
            solutions_first=True,
            patience=None,
            improve=ImproveConfig(num_epochs=2.0),
        )


def _check_unseeded(name: str, params: SamplingParams) -> None:
    if params.seed is not None:
        raise ValueError(
            f"{name}.seed is {params.seed}; every sample has a seed of its own here, made from the "
            "config's seed. Leave it None."
        )
