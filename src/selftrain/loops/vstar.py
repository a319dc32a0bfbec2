"""V-STaR (arXiv 2402.06457): a generator and a verifier from the same graded samples.

The generator learns from what was right, round after round; the verifier from right against wrong,
all rounds together, once at the end. At test time the verifier picks among several answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_choice, check_int
from selftrain._core.io import read_json, write_json
from selftrain._core.rng import derive
from selftrain._core.run import open_run
from selftrain.decoding.sampler import Sampler
from selftrain.loops.candidates import score_samples
from selftrain.loops.config import ReSTEMConfig
from selftrain.loops.generate import Draw, generate
from selftrain.loops.pairs import answer_groups, load_groups, save_groups, with_reference
from selftrain.loops.rest_em import ReSTEM
from selftrain.loops.round import LoopResult, Round
from selftrain.loops.sample import Sample
from selftrain.loops.store import SampleStore
from selftrain.loops.verifier import Verifier
from selftrain.loops.verifier_report import VerifierReport, report_on
from selftrain.tasks.base import Task
from selftrain.training.checkpoint import remove_checkpoints
from selftrain.training.preference import PreferenceConfig, train_preferences
from selftrain.training.snapshot import weights_fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class VSTaRConfig:
    """Settings of V-STaR; the defaults are the paper's where it gives one."""

    generator: ReSTEMConfig = field(default_factory=ReSTEMConfig.vstar)
    """How the generator is trained, and what the verifier gets to see."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """How the verifier is trained; the paper tried three values of beta and names none."""
    max_per_class: int | None = None
    """Most right and most wrong answers of a problem in the verifier's data; None: all."""
    verifier_data: Literal["all", "last"] = "all"
    """Whether the verifier learns from the samples of all rounds, or of the last alone."""
    final_generator: Literal["last", "first"] = "last"
    """Whose candidates are ranked: the last round's generator, or that of supervised training."""
    num_candidates: int = 128
    """Completions of each test problem to rank."""
    in_the_loop: int | None = None
    """Verifier in the loop: train one in every round, and of each problem learn from so many of
    the right samples that it ranks highest, with as many wrong ones (the paper: 8 of 64)."""

    def __post_init__(self) -> None:
        check_choice("verifier_data", self.verifier_data, ("all", "last"))
        check_choice("final_generator", self.final_generator, ("last", "first"))
        check_int("num_candidates", self.num_candidates, low=1)
        for name in ("max_per_class", "in_the_loop"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), low=1)
        if self.generator.sampling.greedy:
            raise ValueError(
                "generator.sampling.temperature is 0; a verifier needs different answers to rank."
            )

    @classmethod
    def paper_gsm8k(cls) -> Self:
        """Return the paper's settings for GSM8K: 16 samples, 3 rounds, 2 epochs, 128 candidates."""
        return cls()

    @classmethod
    def one_round(cls) -> Self:
        """Return the paper's V-STaR [1 Iter]: all 48 samples at once, from supervised training."""
        return cls(generator=_vstar(num_rounds=1, num_samples=48))

    @classmethod
    def sft_verifier(cls) -> Self:
        """Return the baseline SFT + Verifier: the candidates of supervised training, ranked."""
        return cls(generator=_vstar(num_rounds=1, num_samples=48), final_generator="first")

    @classmethod
    def verifier_in_the_loop(cls) -> Self:
        """Return the paper's ablation: 64 samples, of which the verifier chooses 8 right ones."""
        return cls(generator=_vstar(num_samples=64), in_the_loop=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class VSTaRResult:
    """What V-STaR trained, and what it can do."""

    generator: LoopResult
    """The rounds of the generator; the model holds the final generator's weights."""
    verifier: Verifier
    """The verifier, a model of its own."""
    reports: dict[str, VerifierReport]
    """By task: what it is worth to let the verifier choose."""


class VSTaR:
    """Train a generator and a verifier on problems whose answers can be checked.

    Every step is idempotent on files, like those of :class:`ReSTEM`: the same call continues a run
    that was killed. One model does all the work in turn, and ends as the generator.

    Args:
        model: The first weights, and what is trained, in place.
        tokenizer: Its tokenizer.
        task: Problems to train on, with solutions where supervised training comes first.
        config: Settings; None: the paper's for GSM8K.
        validation: Problems to watch; none of them in ``task``.
        output_dir: Where everything goes; a run found there is continued.
        test: Problems to measure on, and nothing else.
        solved: Problems with solutions to begin with; None: those of ``task`` that have one.
        sampler: Draws samples; None: in process.
        accelerator: The process layer; None makes one.
        on_samples: Called with the samples of every chunk.
        on_round: Called with every round of the generator that is over.
        show_progress: Whether to show bars.

    Raises:
        ValueError: If a problem is in two of the tasks, or the settings need what is not given.
        RunConflictError: If ``output_dir`` holds a run with other settings, problems or weights.

    Example:
        >>> result = VSTaR(model, tokenizer, task, validation=held_out).run()  # doctest: +SKIP
        >>> result.verifier.best(problem, ["2 + 2 = 4", "2 + 2 = 5"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        config: VSTaRConfig | None = None,
        *,
        validation: Task,
        output_dir: str | Path,
        test: Task | None = None,
        solved: Task | None = None,
        sampler: Sampler | None = None,
        accelerator: Accelerator | None = None,
        on_samples: Callable[[Sequence[Sample]], None] | None = None,
        on_round: Callable[[Round], None] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.config = config or VSTaRConfig()
        self.folder = Path(output_dir)
        self.loop = ReSTEM(
            model,
            tokenizer,
            task,
            self.config.generator,
            validation=validation,
            output_dir=self.folder / "generator",
            test=test,
            solved=solved,
            sampler=sampler,
            choose=None if self.config.in_the_loop is None else self._choose,
            accelerator=accelerator,
            on_samples=on_samples,
            on_round=on_round,
            show_progress=show_progress,
        )
        self.accelerator = self.loop.accelerator
        self._show = show_progress and self.accelerator.is_main_process
        if self.accelerator.is_main_process:
            open_run(self.folder, self.config, seed=self.config.generator.seed)
        self.accelerator.wait_for_everyone()

    def run(self) -> VSTaRResult:
        """Train the generator, then the verifier, and measure both, or do what is left of it."""
        generator = self.loop.run()
        number = len(generator.rounds) if self.config.final_generator == "last" else 0
        tasks = {"validation": self.loop.validation}
        if self.loop.test is not None:
            tasks["test"] = self.loop.test
        for name, task in tasks.items():
            self.sample_candidates(name, task, number)
        self.train_verifier(self.folder / "verifier", range(len(generator.rounds)))
        reports = {name: self.evaluate(name, task) for name, task in tasks.items()}
        self.loop.policy.hold(self.loop.weights_before(number))
        verifier = Verifier.load(self.folder / "verifier" / "model", accelerator=self.accelerator)
        return VSTaRResult(generator=generator, verifier=verifier, reports=reports)

    def sample_candidates(self, name: str, task: Task, number: int) -> None:
        """Draw and grade the candidates of a task with the generator before round ``number``."""
        self.loop.load_policy(number)
        config = self.config.generator
        draw = Draw(
            round=number,
            num_samples=self.config.num_candidates,
            params=config.sampling,
            seed=derive(config.seed, "candidates", name),
            policy=self.loop.policy.fingerprint(),
        )
        rank = self.accelerator.process_index
        with SampleStore(self._candidates(name), rank=rank) as store:
            generate(
                store,
                task,
                self.loop.policy.sampler,
                draw,
                chunk_size=config.chunk_for(self.config.num_candidates),
                rank=rank,
                num_ranks=self.accelerator.num_processes,
                show_progress=self._show,
                title=f"{name}: candidates",
            )
        self.accelerator.wait_for_everyone()

    def train_verifier(self, folder: Path, rounds: Sequence[int]) -> None:
        """Train a verifier on the samples of these rounds, from the weights before the first.

        Those weights are the reference as well; they read every answer once, and what they say of
        it is written to ``groups.jsonl``.

        Raises:
            ValueError: If no problem has both right and wrong answers.
        """
        if (folder / "model").exists():
            return
        policy = self.loop.policy
        policy.start_training(self.loop.weights_before(0))
        groups_file = folder / "groups.jsonl"
        if not groups_file.exists():
            self._write_groups(groups_file, rounds)
        train_preferences(
            policy.model,
            load_groups(groups_file),
            self.config.preference,
            output_dir=folder / "training",
            reference=read_json(folder / "data.json")["reference"],
            accelerator=self.accelerator,
            show_progress=self._show,
            title="verifier",
        )
        self.accelerator.free_memory()
        if self.accelerator.is_main_process:
            Verifier(policy.model, policy.tokenizer).save(folder / "model")
            remove_checkpoints(folder / "training")
        self.accelerator.wait_for_everyone()

    def evaluate(self, name: str, task: Task) -> VerifierReport:
        """Let the verifier rank a task's candidates; compare that with votes and with chance."""
        folder = self.folder / "verifier"
        done = VerifierReport.load(folder, name)
        if done is not None:
            return done
        samples = SampleStore(self._candidates(name)).load()
        # One model in turn: what the reference says of every candidate, then the verifier.
        reference = self._scores(self.loop.weights_before(0), samples, task)
        verifier = self._scores(folder / "model", samples, task)
        report = report_on(
            task,
            samples,
            verifier=verifier,
            reference=reference,
            seed=self.config.generator.seed,
        )
        if self.accelerator.is_main_process:
            report.save(folder, name)
        self.accelerator.wait_for_everyone()
        return report

    def _candidates(self, name: str) -> Path:
        return self.folder / "candidates" / name

    def _scores(self, weights: Path | None, samples: Sequence[Sample], task: Task) -> list[float]:
        """Return the log-likelihood of every sample under these weights."""
        policy = self.loop.policy
        policy.hold(weights)
        judge = Verifier(policy.model, policy.tokenizer, accelerator=self.accelerator)
        return score_samples(judge, samples, task).tolist()

    def _write_groups(self, path: Path, rounds: Sequence[int]) -> None:
        loop, config = self.loop, self.config
        used = rounds if config.verifier_data == "all" else rounds[-1:]
        # Solutions of other problems would be in no pair.
        has_solutions = any(problem.solution is not None for problem in loop.task.problems)
        with_them = config.generator.with_solutions and has_solutions
        solutions = loop.row_writer.of_solutions() if with_them else ()
        answers = answer_groups(
            [sample for number in used for sample in loop.samples(number)],
            loop.row_writer,
            solutions=solutions,
            max_per_class=config.max_per_class,
            min_score=config.generator.min_score,
            seed=config.generator.seed,
        )
        groups = with_reference(
            answers.groups, loop.model, accelerator=self.accelerator, show_progress=self._show
        )
        if self.accelerator.is_main_process:
            written = {"reference": weights_fingerprint(loop.model), **answers.counts}
            write_json(path.with_name("data.json"), written)
            save_groups(groups, path)
        self.accelerator.wait_for_everyone()

    def _choose(self, number: int, samples: list[Sample]) -> list[Sample]:
        """Keep of each problem the right samples that a verifier of this round ranks highest."""
        most = self.config.in_the_loop or 0
        loop, folder = self.loop, self.folder / "verifiers" / f"{number:03d}"
        self.train_verifier(folder, range(number + 1))
        scores = self._scores(folder / "model", samples, loop.task)
        problems: dict[str, tuple[list[Sample], list[Sample]]] = {}
        for _, sample in sorted(zip(scores, samples, strict=True), key=lambda x: (-x[0], x[1].key)):
            if sample.score is not None:
                right = sample.score >= self.config.generator.min_score
                problems.setdefault(sample.problem_id, ([], []))[0 if right else 1].append(sample)
        kept = []
        for right, wrong in problems.values():
            kept += right[:most] + wrong[: min(most, len(right)) or most]
        return kept


def _vstar(**changes: int) -> ReSTEMConfig:
    return replace(ReSTEMConfig.vstar(), **changes)  # pyrefly: ignore[bad-argument-type]
