"""Random experience, and what a buffer has to make of it, worked out step by step."""

from dataclasses import dataclass, field

import numpy as np
import torch

SHAPE = (2, 3)


@dataclass
class Step:
    """One step of one environment."""

    frame: np.ndarray
    action: int
    reward: float
    terminated: bool = False
    truncated: bool = False
    border: bool = False
    first: int = 0  # the row where its episode begins


@dataclass
class Reference:
    """All steps ever added, by environment; knows which of them are still stored."""

    num_envs: int
    num_rows: int
    stack: int
    envs: list[list[Step]] = field(default_factory=list)

    def __post_init__(self):
        self.envs = [[] for _ in range(self.num_envs)]

    @property
    def end(self):
        return len(self.envs[0])

    @property
    def start(self):
        return max(0, self.end - self.num_rows)

    def add(self, rows):
        for steps, step in zip(self.envs, rows, strict=True):
            before = steps[-1] if steps else None
            if step.border and before is not None and not before.border:
                step.first = before.first
                if not (before.terminated or before.truncated):
                    before.truncated = True
            elif before is None or before.border or before.terminated or before.truncated:
                step.first = len(steps)
            else:
                step.first = before.first
            steps.append(step)

    def state(self, env, row):
        """Return the stack of frames seen at a row, zeros before the episode."""
        steps = self.envs[env]
        first = steps[row].first
        rows = range(row - self.stack + 1, row + 1)
        return np.stack(
            [steps[r].frame if r >= first else np.zeros_like(steps[row].frame) for r in rows]
        )

    def nothing(self, env):
        return np.zeros((self.stack, *self.envs[env][0].frame.shape), self.envs[env][0].frame.dtype)

    def transition(self, env, row, num_steps, discount):
        """Return (return, discount, next state, next row) or None if it cannot be drawn."""
        steps = self.envs[env]
        if steps[row].border or (self.start > 0 and row < self.start + self.stack - 1):
            return None
        total, factor = 0.0, 1.0
        for now in range(row, row + num_steps):
            if now >= self.end:
                return None
            step = steps[now]
            total, factor = total + factor * step.reward, factor * discount
            kept = now + 1 < self.end and steps[now + 1].border
            if step.terminated:
                after = self.state(env, now + 1) if kept else self.nothing(env)
                return total, 0.0, after, None
            if step.truncated:
                return (total, factor, self.state(env, now + 1), now + 1) if kept else None
        after = row + num_steps
        return (total, factor, self.state(env, after), after) if after < self.end else None

    def window(self, env, row, num):
        """Return (states, mask) of the K steps that follow, or None if they are not known."""
        steps, states, mask = self.envs[env], [self.state(env, row)], []
        over = masked = False
        for now in range(row, row + num):
            if over:
                states.append(None)
                mask.append(False)
                continue
            if now + 1 >= self.end and not (steps[now].terminated or steps[now].truncated):
                return None
            ended = steps[now].terminated or steps[now].truncated
            kept = now + 1 < self.end and steps[now + 1].border
            masked = steps[now].terminated or (ended and not kept)
            states.append(self.state(env, now + 1) if kept or not ended else None)
            mask.append(not masked)
            over = ended
        return states, mask

    def drawable(self, num_steps, window):
        """Return the numbers of the steps that can be drawn."""
        return {
            row * self.num_envs + env
            for env in range(self.num_envs)
            for row in range(self.start, self.end)
            if self.transition(env, row, num_steps, 0.9) is not None
            and self.window(env, row, window) is not None
        }


class Stream:
    """Environments that end in every way there is, with and without a border after the end."""

    def __init__(self, num_envs, seed, *, end_rate=0.15, border_rate=0.5, dtype=np.float32):
        self.rng, self.num_envs, self.dtype = np.random.default_rng(seed), num_envs, dtype
        self.end_rate, self.border_rate = end_rate, border_rate
        self.border_next = np.zeros(num_envs, dtype=bool)
        self.count = 0

    def row(self):
        """Return one step of every environment."""
        return [self._step(env) for env in range(self.num_envs)]

    def _step(self, env):
        rng = self.rng
        self.count += 1
        frame = rng.integers(1, 250, SHAPE).astype(self.dtype)
        if self.dtype == np.float32:
            frame += self.count * 1000  # no two frames are alike
        step = Step(frame, int(rng.integers(5)), float(np.float32(rng.normal())))
        if self.border_next[env]:
            step.border, self.border_next[env] = True, False
        elif rng.random() < self.end_rate:
            kind = rng.integers(4)
            step.terminated, step.truncated = kind in (0, 2), kind in (1, 2)
            # Kind 3: broken off by a border alone.
            self.border_next[env] = kind == 3 or rng.random() < self.border_rate
        return step


def add_to(buffer, reference, row):
    """Give one row to both."""
    buffer.add(
        np.stack([s.frame for s in row]),
        np.array([s.action for s in row]),
        np.array([s.reward for s in row]),
        np.array([s.terminated for s in row]),
        np.array([s.truncated for s in row]),
        valid=np.array([not s.border for s in row]),
    )
    reference.add(row)


def everything(buffer, **options):
    """Draw so many strata that each step that can be drawn is drawn (uniform buffers)."""
    return buffer.sample(2 * len(buffer), rng=torch.Generator().manual_seed(0), **options)
