"""The loop of a value agent: act, observe, learn, evaluate, save; exactly resumable.

Shape letters: E environments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from selftrain._core.checks import check_int
from selftrain._core.logging import progress
from selftrain._core.rng import derive
from selftrain._core.run import open_run
from selftrain.rl.dqn import DQN
from selftrain.rl.evaluate import environment_seed, evaluate, games_over
from selftrain.rl.record import EvaluatedAt, Recorder

_CHECKPOINT = "agent"


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunSettings:
    """What a folder is not continued with another of; of the length of the run it may be."""

    agent: dict[str, Any]
    env: str
    num_envs: int
    save_every: int
    log_every: int
    eval_every: int
    num_eval_episodes: int


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run gave."""

    evaluations: list[EvaluatedAt]
    """In order; empty without ``eval_env``. The last one is at the end."""
    rows: list[dict[str, Any]]
    """The rows of metrics; ``step`` counts steps of the environments."""


def train(
    agent: DQN,
    env: VectorEnv,
    num_env_steps: int,
    *,
    output_dir: str | Path | None = None,
    eval_env: VectorEnv | None = None,
    eval_every: int = 10_000,
    num_eval_episodes: int = 10,
    save_every: int = 100_000,
    log_every: int = 1_000,
    show_progress: bool = True,
) -> TrainResult:
    """Train an agent, and continue where a killed run in ``output_dir`` was saved last.

    The result of a continued run is that of one never stopped, bit for bit on a CPU. For that, the
    running episodes are cut off and all environments reset at every multiple of ``save_every``,
    whether anything is written or not: no environment's inner state has to be saved.

    Steps count the transitions of all environments together, without those that they spend on
    their resets.

    Args:
        agent: To be trained; a new one with the same arguments to continue a run.
        env: Environments that reset themselves in the step after an episode's end, as
            ``gymnasium.make_vec`` makes them.
        num_env_steps: Steps in all. A finished run is continued if there are more.
        output_dir: Where ``metrics.jsonl``, settings and the agent go; None: nowhere.
        eval_env: Other environments to evaluate in; None: no evaluations.
        eval_every: Steps between evaluations.
        num_eval_episodes: Episodes of each.
        save_every: Steps between saves.
        log_every: Steps between rows of metrics.
        show_progress: Show a bar.

    Raises:
        ValueError: If a number is out of range or the environments reset themselves otherwise.
        RunConflictError: If ``output_dir`` holds a run with other settings.
    """
    settings = _RunSettings(
        agent=agent.settings(),
        env=_name(env),
        num_envs=env.num_envs,
        save_every=save_every,
        log_every=log_every,
        eval_every=eval_every,
        num_eval_episodes=num_eval_episodes,
    )
    _check(env, num_env_steps, settings)
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None:
        open_run(folder, settings, seed=agent.seed)
        if (folder / _CHECKPOINT).exists():
            agent.load(folder / _CHECKPOINT)
    recorder = Recorder(folder, agent, env.num_envs, log_every)

    def evaluate_now() -> None:
        if eval_env is not None:
            seed = derive(agent.seed, "evaluation", agent.num_env_steps)
            recorder.evaluated(evaluate(agent, eval_env, num_eval_episodes, seed=seed))

    with progress("training", num_env_steps, done=agent.num_env_steps, show=show_progress) as bar:

        def after_step(before: int) -> None:
            if _multiple_after(before, eval_every) <= agent.num_env_steps < num_env_steps:
                evaluate_now()
            if agent.num_env_steps == recorder.row_start:
                bar.update(min(agent.num_env_steps, num_env_steps), recorder.note)

        while (done := agent.num_env_steps) < num_env_steps:
            end = min(_multiple_after(done, save_every), num_env_steps)
            _play_until(end, agent, env, recorder, after_step)
            if agent.num_env_steps >= num_env_steps:
                evaluate_now()
            if folder is not None:
                agent.save(folder / _CHECKPOINT)
    return TrainResult(recorder.evaluations, recorder.rows)


def _play_until(
    end: int,
    agent: DQN,
    env: VectorEnv,
    recorder: Recorder,
    after_step: Callable[[int], None],
) -> None:
    """Act and learn from a reset of all environments until ``end``, where all episodes are cut."""
    seed = derive(agent.seed, "env", agent.num_env_steps)
    observations, _ = env.reset(seed=environment_seed(seed, env.num_envs))
    valid = np.ones(env.num_envs, dtype=bool)
    recorder.begin_segment()
    while (before := agent.num_env_steps) < end:
        actions = agent.act(observations)
        following, rewards, terminated, truncated, infos = env.step(actions)
        over = games_over(terminated, truncated, infos)
        agent.observe(observations, actions, rewards, terminated, truncated, valid)
        recorder.step(rewards, valid, over)
        row_due = agent.num_env_steps >= end or recorder.row_due(agent.num_env_steps)
        for left in reversed(range(agent.updates_due)):
            recorder.learnt(agent.learn(measure=row_due and not left))
        if row_due:
            recorder.end_row()
        observations, valid = following, ~over
        after_step(before)
    # The observations after the last actions: what follows no longer belongs to these episodes.
    nothing = np.zeros(env.num_envs)
    no, actions = nothing.astype(bool), nothing.astype(np.int64)
    agent.observe(observations, actions, nothing, no, no, no)


def _multiple_after(step: int, every: int) -> int:
    return (step // every + 1) * every


def _name(env: VectorEnv) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _check(env: VectorEnv, num_env_steps: int, settings: _RunSettings) -> None:
    check_int("num_env_steps", num_env_steps, low=1)
    for name in ("save_every", "log_every", "eval_every", "num_eval_episodes"):
        check_int(name, getattr(settings, name), low=1)
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"env has autoreset_mode={mode}, but the last observations of episodes are read as "
            "AutoresetMode.NEXT_STEP gives them; make it with gymnasium.make_vec, whose default "
            "that is."
        )
