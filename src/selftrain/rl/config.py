"""Settings of the value agent, with the published ones by name."""

from dataclasses import dataclass, replace
from typing import Self

from selftrain._core.checks import check_int, check_range


@dataclass(frozen=True, kw_only=True, slots=True)
class DQNConfig:
    """How a value agent explores, stores and learns.

    The defaults are those of :meth:`small`. Steps of the environment are transitions stored: with
    several environments, one step of all of them counts as many.
    """

    discount: float = 0.99
    """Factor of the reward one step later, in [0, 1]."""
    num_steps: int = 3
    """Rewards summed before the target network's value is added."""
    batch_size: int = 64
    """Transitions an update."""
    learning_rate: float = 5e-4
    """Of Adam, constant."""
    adam_eps: float = 1e-5
    """Added to Adam's denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and kernels; vectors are never decayed."""
    max_grad_norm: float | None = 10.0
    """Gradients are scaled down to this global norm; None leaves them as they are."""
    huber_delta: float | None = None
    """Error from which the loss of the scalar head is linear; None: squared throughout. The
    categorical heads do not know it."""
    double: bool = True
    """The online network chooses the next action and the target network values it."""
    dueling: bool = False
    """Logits are a sum of one for the state and one for each action."""
    priority_exponent: float | None = None
    """Sampling is proportional to the priority to this power; None: uniform."""
    importance_exponent: float = 1.0
    """How far weights of the losses undo prioritised sampling, in [0, 1]."""
    capacity: int = 50_000
    """Transitions kept; the oldest make room."""
    stack: int = 1
    """Observations that the network sees at once: 4 in Atari games."""
    warmup_steps: int = 1_000
    """Steps of random actions before the first update."""
    update_every: int = 4
    """Steps between updates."""
    updates_per_step: int = 1
    """Updates each time."""
    target_every: int | None = None
    """Updates after which the target network becomes a copy; None where ``target_decay`` is set."""
    target_decay: float | None = 0.99
    """The target network is the moving average of the network with this decay, in [0, 1); None
    where ``target_every`` is set."""
    epsilon_start: float = 1.0
    """Share of random actions at the end of the warm-up."""
    epsilon_end: float = 0.02
    """Share of random actions after ``epsilon_steps`` more."""
    epsilon_steps: int = 5_000
    """Steps after the warm-up over which the share of random actions falls linearly."""
    eval_epsilon: float = 0.0
    """Share of random actions in evaluations."""
    reward_clip: float | None = None
    """Rewards are clipped to within this of zero for learning; None leaves them as they are."""

    def __post_init__(self) -> None:
        for name in ("discount", "importance_exponent"):
            check_range(name, getattr(self, name), low=0.0, high=1.0)
        for name in ("epsilon_start", "epsilon_end", "eval_epsilon"):
            check_range(name, getattr(self, name), low=0.0, high=1.0)
        for name in ("num_steps", "batch_size", "capacity", "stack", "update_every"):
            check_int(name, getattr(self, name), low=1)
        for name in ("updates_per_step", "warmup_steps"):
            check_int(name, getattr(self, name), low=1)
        check_int("epsilon_steps", self.epsilon_steps, low=0)
        check_range("weight_decay", self.weight_decay, low=0.0)
        for name in ("learning_rate", "adam_eps"):
            check_range(name, getattr(self, name), low=0.0, low_open=True)
        for name in ("max_grad_norm", "huber_delta", "priority_exponent", "reward_clip"):
            if (value := getattr(self, name)) is not None:
                check_range(name, value, low=0.0, low_open=True)
        self._check_target()
        if self.warmup_steps > self.capacity:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but the replay holds capacity="
                f"{self.capacity}; lower the one or raise the other."
            )

    def _check_target(self) -> None:
        if (self.target_every is None) == (self.target_decay is None):
            raise ValueError(
                f"target_every={self.target_every} and target_decay={self.target_decay}: set one "
                "of them, the other to None. The first copies the network now and then, the second "
                "averages it."
            )
        if self.target_every is not None:
            check_int("target_every", self.target_every, low=1)
        if self.target_decay is not None:
            check_range("target_decay", self.target_decay, low=0.0, high=1.0, high_open=True)

    @classmethod
    def small(cls) -> Self:
        """Return settings for problems of seconds to minutes on a CPU, such as Catch."""
        return cls()

    @classmethod
    def atari(cls) -> Self:
        """Return the settings of DQN in "Stop Regressing" for 200M frames of an Atari game.

        Those of Dopamine's DQN with Adam (arXiv 1812.06110), which arXiv 2403.03950 compares heads
        with. The target network is copied every 8,000 steps, which are 2,000 updates.
        """
        return cls(
            num_steps=1,
            batch_size=32,
            learning_rate=6.25e-5,
            adam_eps=1.5e-4,
            max_grad_norm=None,
            double=False,
            capacity=1_000_000,
            stack=4,
            warmup_steps=20_000,
            update_every=4,
            target_every=2_000,
            target_decay=None,
            epsilon_end=0.01,
            epsilon_steps=250_000,
            eval_epsilon=0.001,
            reward_clip=1.0,
        )

    @classmethod
    def rainbow(cls) -> Self:
        """Return the settings of Rainbow (arXiv 1710.02298, table 1), without noisy layers.

        Exploration is by epsilon as in :meth:`atari` instead, and the importance exponent stays at
        0.5, as in Dopamine, where the paper raises it from 0.4 to 1. The paper's head is C51 with
        51 atoms from -10 to 10.
        """
        return replace(
            cls.atari(),
            num_steps=3,
            max_grad_norm=10.0,
            double=True,
            dueling=True,
            priority_exponent=0.5,
            importance_exponent=0.5,
        )

    def epsilon_at(self, num_env_steps: int) -> float:
        """Return the share of random actions after so many steps: 1 until the warm-up ends."""
        if num_env_steps < self.warmup_steps:
            return 1.0
        done = num_env_steps - self.warmup_steps
        left = max(0.0, 1.0 - done / self.epsilon_steps) if self.epsilon_steps else 0.0
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * left

    def updates_at(self, num_env_steps: int) -> int:
        """Return how many updates there are to have been after so many steps."""
        if num_env_steps < self.warmup_steps:
            return 0
        times = 1 + (num_env_steps - self.warmup_steps) // self.update_every
        return times * self.updates_per_step
