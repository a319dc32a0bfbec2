"""Settings of conservative Q-learning."""

from dataclasses import dataclass
from typing import Literal

from selftrain._core.checks import check_choice, check_int, check_range

TARGETS = ("q_learning", "sarsa", "monte_carlo")


@dataclass(frozen=True, kw_only=True, slots=True)
class CQLConfig:
    """Settings of :class:`CQL`; the defaults are for small problems on a CPU."""

    target: Literal["q_learning", "sarsa", "monte_carlo"] = "q_learning"
    """What values are trained towards: the best next action, the next action in the log (values of
    the policy that logged), or the rest of the logged return, up to where the log ends."""
    alpha: float = 0.1
    """Factor of the conservative penalty; 0 leaves plain DQN (or SARSA) on the data."""
    td_coef: float = 1.0
    """Factor of the loss against the target; 0 leaves the penalty alone, which is behaviour
    cloning."""
    double: bool = True
    """With q_learning, let the online network choose the next action that the target network
    values."""
    discount: float = 0.99
    """Factor of a reward for each step that it lies ahead."""
    num_steps: int = 1
    """Rewards summed before a value is bootstrapped; 1 with monte_carlo, which has no such step."""
    stack: int = 1
    """Observations that the network sees at once, where the log holds single frames."""
    batch_size: int = 64
    """Transitions of one update."""
    learning_rate: float = 3e-4
    """Of Adam."""
    adam_eps: float = 1e-8
    """Of Adam, added to the root of the second moment."""
    max_grad_norm: float | None = None
    """Gradients longer than this are shortened to it; None for no bound."""
    target_every: int = 200
    """Updates between copies of the network to the target network."""
    num_updates: int = 5000
    """Updates in all."""
    log_every: int = 100
    """Updates between rows of metrics."""
    eval_every: int = 1000
    """Updates between calls of the evaluation given to ``fit``."""
    save_every: int = 1000
    """Updates between checkpoints."""
    seed: int = 0
    """Of the batches."""

    def __post_init__(self) -> None:
        check_choice("target", self.target, TARGETS)
        for name in ("alpha", "td_coef"):
            check_range(name, getattr(self, name), low=0.0)
        check_range("discount", self.discount, low=0.0, high=1.0)
        for name in ("learning_rate", "adam_eps"):
            check_range(name, getattr(self, name), low=0.0, low_open=True)
        if self.max_grad_norm is not None:
            check_range("max_grad_norm", self.max_grad_norm, low=0.0, low_open=True)
        for name in ("num_steps", "stack", "batch_size", "target_every", "num_updates"):
            check_int(name, getattr(self, name), low=1)
        for name in ("log_every", "eval_every", "save_every"):
            check_int(name, getattr(self, name), low=1)
        if self.alpha == 0 == self.td_coef:
            raise ValueError("alpha and td_coef are both 0: there would be nothing to learn.")
        if self.target == "monte_carlo" and self.num_steps != 1:
            raise ValueError(
                f"num_steps must be 1 with target='monte_carlo', which sums all rewards, got "
                f"{self.num_steps}."
            )

    @classmethod
    def atari(cls) -> "CQLConfig":
        """Return the settings of the offline Atari runs of arXiv 2403.03950.

        From the reference code; the number of updates is that of 100 x 62,500.
        """
        return cls(
            stack=4,
            batch_size=32,
            learning_rate=6.25e-5,
            adam_eps=3.125e-4,
            target_every=2000,
            num_updates=6_250_000,
            log_every=1000,
            eval_every=62_500,
            save_every=62_500,
        )
