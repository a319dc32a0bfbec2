"""ReST-EM (arXiv 2312.06585) and its relatives: sample, keep what is right, train, again.

E-step: draw completions from the current model and grade them. M-step: train on the right ones,
starting from the first weights. Both are idempotent on files: a step that finds its result does
nothing, one that finds half of it does the rest, so that the same call continues a run that was
killed, with the same result.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.io import read_json, read_jsonl, recover_folder, write_json, write_jsonl
from selftrain._core.rng import derive
from selftrain._core.run import open_run
from selftrain.decoding.sampler import Sampler
from selftrain.loops.config import ReSTEMConfig
from selftrain.loops.evaluate import Evaluation, false_positives, pass_rate, summarize
from selftrain.loops.generate import Draw, generate, grade
from selftrain.loops.identity import RunIdentity
from selftrain.loops.policy import Policy
from selftrain.loops.round import LoopResult, Round, RoundFiles
from selftrain.loops.rows import RowWriter
from selftrain.loops.sample import Sample
from selftrain.loops.select import Selection, select
from selftrain.loops.store import SampleStore
from selftrain.tasks.base import Problem, PromptText, Task, check_disjoint
from selftrain.training.checkpoint import remove_checkpoints
from selftrain.training.finetune import finetune

_log = logging.getLogger(__name__)

START = -1
"""The number of the model before the first round."""


class ReSTEM:
    r"""Improve a model on problems whose answers can be checked, by its own right answers.

    .. math:: J(\theta) = E_x\, E_{y \sim p_{\theta_t}} [ r(x, y) \log p_\theta(y \mid x) ]

    is maximised in each round over the samples of the round's policy, which is fixed (equation 3 of
    the paper). ``ReSTEMConfig`` has STaR, RFT, ReST and V-STaR's generator as presets.

    Rounds are numbered from 0; round -1 is the model before the first. Every step can be called
    alone, works on the files of its round, and leaves alone what is already there.

    Args:
        model: The first weights, and what is trained, in place: a causal language model of
            transformers, whole or with adapters (PEFT); only what requires gradients changes.
        tokenizer: Its tokenizer.
        task: The problems to train on.
        config: Settings; None: the paper's for MATH.
        validation: Problems that decide when to stop; none of them in ``task``.
        output_dir: Where everything goes; a run found there is continued.
        test: Problems to measure on, and nothing else.
        solved: Problems with solutions, for ``solutions_first`` and ``with_solutions``; None: those
            of ``task`` that have one.
        sampler: Draws the training samples and those of evaluations; None: in process. A server
            with ``load_weights`` is told of new weights.
        hint: What a model reads at a second attempt, the answer given away, for ``rationalize``.
        choose: Called with a round's number and its graded samples, in all processes together;
            only what it returns can be selected. Called once a round, whatever is interrupted.
        accelerator: The process layer; None makes one.
        on_samples: Called with the samples of every chunk.
        on_round: Called with every round that is over.
        show_progress: Whether to show bars.

    Raises:
        ValueError: If a problem is in two of the tasks, or the settings need what is not given.
        RunConflictError: If ``output_dir`` holds a run with other settings, problems or weights.

    Example:
        >>> loop = ReSTEM(model, tokenizer, task, validation=held_out)  # doctest: +SKIP
        >>> loop.run().best.evaluations["validation"].greedy.mean  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        config: ReSTEMConfig | None = None,
        *,
        validation: Task,
        output_dir: str | Path,
        test: Task | None = None,
        solved: Task | None = None,
        sampler: Sampler | None = None,
        hint: Callable[[Problem], PromptText] | None = None,
        choose: Callable[[int, list[Sample]], Sequence[Sample]] | None = None,
        accelerator: Accelerator | None = None,
        on_samples: Callable[[Sequence[Sample]], None] | None = None,
        on_round: Callable[[Round], None] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.config = config or ReSTEMConfig()
        for trained in (task, solved):
            if trained is not None:
                check_disjoint(trained, validation, *([] if test is None else [test]))
        if self.config.rationalize and hint is None:
            raise ValueError("rationalize=True needs hint, which makes the prompt with the answer.")
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.validation, self.test, self.solved = validation, test, solved
        self.folder = Path(output_dir)
        self.accelerator = accelerator or Accelerator()
        self.policy = Policy(
            model,
            tokenizer,
            self.accelerator,
            sampler=sampler,
            batch_size=self.config.batch_size,
        )
        self.row_writer = RowWriter(task, model, tokenizer)
        self._hint, self._choose = hint, choose
        self._on_samples, self._on_round = on_samples, on_round
        self._show = show_progress and self.accelerator.is_main_process
        self._seconds: dict[str, float] = {}
        identity = RunIdentity.of(
            self.config,
            self.policy.base,
            task=task,
            validation=validation,
            test=test,
            solved=solved,
        )
        if self.accelerator.is_main_process:
            open_run(self.folder, identity, seed=self.config.seed)
        self.accelerator.wait_for_everyone()

    def run(self) -> LoopResult:
        """Run all rounds, or those that are left of a run that was stopped."""
        start = self._start()
        rounds: list[Round] = []
        stopped = f"num_rounds={self.config.num_rounds} rounds are done"
        for number in range(self.config.num_rounds):
            done = Round.load(self.files(number).folder)
            if done is None:
                self.generate(number)
                self.grade(number)
                if not self.select(number).samples:
                    stopped = (
                        f"no sample of round {number} was good enough to train on (min_score="
                        f"{self.config.min_score}); the model keeps its best weights so far"
                    )
                    _log.warning(stopped)
                    break
                self.improve(number)
                done = self.evaluate(number)
            rounds.append(done)
            if self._on_round is not None:
                self._on_round(done)
            if self._is_stale([start, *rounds]):
                stopped = f"validation pass@1 was not better in round {number}"
                break
        best = max([start, *rounds], key=lambda round: round.validation)  # ties: the earliest
        self.policy.hold(self.weights_before(best.number + 1))
        return LoopResult(start=start, rounds=tuple(rounds), best=best, stopped=stopped)

    def files(self, number: int) -> RoundFiles:
        """Return where the files of a round lie."""
        name = "start" if number == START else f"rounds/{number:03d}"
        return RoundFiles(self.folder / name)

    def generate(self, number: int) -> None:
        """Draw and grade the samples of a round with the weights before it, all processes together.

        Where ``rationalize`` is set, the problems that stay unsolved are tried again with a hint.
        """
        self.load_policy(number)
        with self._timed("generate"):
            draw = self._draw(number)
            self._generate(self.files(number).samples, self.task, draw, f"round {number}: samples")
            if self.config.rationalize:
                unsolved = self._unsolved(number)
                again = replace(draw, first_index=draw.num_samples)
                if unsolved is not None:
                    title = f"round {number}: hinted"
                    self._generate(self.files(number).hinted, unsolved, again, title, self._hint)

    def grade(self, number: int) -> None:
        """Judge what was sampled without a grade, such as completions written elsewhere."""
        with self._timed("grade"):
            if self.accelerator.is_main_process:
                self._grade(self.files(number).samples, self.task)
                if self.config.rationalize and (unsolved := self._unsolved(number)) is not None:
                    self._grade(self.files(number).hinted, unsolved)
            self.accelerator.wait_for_everyone()

    def select(self, number: int) -> Selection:
        """Choose what to train on from a round's graded samples and write it to ``train.jsonl``.

        The result depends on the set of samples alone, not on the order in which they came.
        """
        files = self.files(number)
        if self._choose is not None and not files.chosen.exists():
            chosen = self._choose(number, self.samples(number))
            if self.accelerator.is_main_process:
                write_json(files.chosen, [sample.key for sample in chosen])
            self.accelerator.wait_for_everyone()
        selection = self._select(number)
        if self.accelerator.is_main_process and not files.rows.exists():
            rows = self.row_writer.of_samples(
                selection.samples, selection.weights, selection.multiplicity
            )
            if self.config.with_solutions and rows:
                rows = [*self.row_writer.of_solutions(self.solved), *rows]
            write_jsonl(files.rows, rows)
        self.accelerator.wait_for_everyone()
        return selection

    def improve(self, number: int) -> None:
        """Train on the rows of a round, from the first weights or the last, and save the model.

        The parameters with the best validation score of the evaluations on the way are kept.
        """
        files = self.files(number)
        recover_folder(files.model)
        if not files.model.exists():
            last = number != START and self.config.restart == "last"
            self.policy.start_training(self.weights_before(number) if last else None)
            rows = read_jsonl(files.rows)
            config = self.config.improve.for_rows(
                len(rows), round=max(number, 0), seed=derive(self.config.seed, "improve", number)
            )
            with self._timed("improve"):
                finetune(
                    self.model,
                    rows,
                    config,
                    output_dir=files.training,
                    judge=self._judge,
                    keep_best="pass@1",
                    accelerator=self.accelerator,
                    show_progress=self._show,
                    title=f"{'start' if number == START else f'round {number}'}: training",
                )
            # Else the next round's DDP would find this one's hooks on the same parameters.
            self.accelerator.free_memory()
            self.policy.save(files.model)
        if self.accelerator.is_main_process:
            remove_checkpoints(files.training)
        self.load_policy(number + 1)

    def evaluate(self, number: int) -> Round:
        """Measure the model that a round produced, and close the round."""
        self.load_policy(number + 1)
        tasks = {"train": self._some_of_train(), "validation": self.validation}
        if self.test is not None:
            tasks["test"] = self.test
        with self._timed("evaluate"):
            evaluations = {name: self._evaluate(number, name, t) for name, t in tasks.items()}
        files = self.files(number)
        samples = [] if number == START else self.samples(number)
        scores = [sample.score for sample in samples if sample.score is not None]
        selection = None if number == START else self._select(number)
        done = Round(
            number=number,
            num_samples=len(samples),
            pass_fraction=sum(scores) / max(len(scores), 1),
            solved_fraction=len(self._solved(samples)) / len(self.task),
            num_selected=len(read_jsonl(files.rows)),
            selection={} if selection is None else selection.counts,
            false_positive_fraction=(
                None if selection is None else false_positives(self.task, selection.samples)
            ),
            evaluations=evaluations,
            folder=files.folder,
            seconds=self._seconds,
        )
        self._seconds = {}
        if self.accelerator.is_main_process:
            done.save()
        self.accelerator.wait_for_everyone()
        return done

    def load_policy(self, number: int) -> None:
        """Give model and sampler the weights that round ``number`` samples with."""
        self.policy.load(self.weights_before(number))

    def weights_before(self, number: int) -> Path | None:
        """Return the folder of the weights before a round; None for the first weights."""
        before = number - 1
        if before < START or (before == START and not self.config.solutions_first):
            return None
        return self.files(before).model

    def samples(self, number: int) -> list[Sample]:
        """Return the graded samples of a round, the hinted ones last, less what was not chosen."""
        files = self.files(number)
        found = [*SampleStore(files.samples).load(), *SampleStore(files.hinted).load()]
        if not files.chosen.exists():
            return found
        chosen = {tuple(key) for key in read_json(files.chosen)}
        return [sample for sample in found if sample.key in chosen]

    def _start(self) -> Round:
        files = self.files(START)
        done = Round.load(files.folder)
        if done is not None:
            return done
        if self.config.solutions_first:
            if self.accelerator.is_main_process and not files.rows.exists():
                write_jsonl(files.rows, self.row_writer.of_solutions(self.solved))
            self.accelerator.wait_for_everyone()
            self.improve(START)
        return self.evaluate(START)

    def _is_stale(self, rounds: Sequence[Round]) -> bool:
        """Return whether the last ``patience`` rounds brought no better validation score."""
        patience = self.config.patience
        if patience is None or len(rounds) <= patience:
            return False
        before = max(round.validation for round in rounds[:-patience])
        return all(round.validation <= before for round in rounds[-patience:])

    def _draw(self, number: int) -> Draw:
        return Draw(
            round=number,
            num_samples=self.config.num_samples,
            params=self.config.sampling,
            seed=self.config.seed,
            policy=self.policy.fingerprint(),
        )

    def _generate(
        self,
        folder: Path,
        task: Task,
        draw: Draw,
        title: str,
        prompt: Callable[[Problem], PromptText] | None = None,
    ) -> None:
        """Fill a store together with the other processes."""
        with SampleStore(folder, rank=self.accelerator.process_index) as store:
            generate(
                store,
                task,
                self.policy.sampler,
                draw,
                chunk_size=self.config.chunk_for(draw.num_samples),
                prompt=prompt,
                rank=self.accelerator.process_index,
                num_ranks=self.accelerator.num_processes,
                on_samples=self._on_samples,
                show_progress=self._show,
                title=title,
            )
        self.accelerator.wait_for_everyone()

    def _grade(self, folder: Path, task: Task) -> None:
        with SampleStore(folder, rank=self.accelerator.process_index) as store:
            size = self.config.chunk_for(self.config.num_samples)
            grade(store, task, chunk_size=size, show_progress=self._show)

    def _unsolved(self, number: int) -> Task | None:
        """Return the problems without a good first attempt; None if there are none."""
        samples = SampleStore(self.files(number).samples).load()
        solved = self._solved(samples)
        left = tuple(problem for problem in self.task.problems if problem.id not in solved)
        return replace(self.task, problems=left) if left else None

    def _solved(self, samples: Sequence[Sample]) -> set[str]:
        least = self.config.min_score
        return {s.problem_id for s in samples if s.score is not None and s.score >= least}

    def _select(self, number: int) -> Selection:
        config = self.config
        rounds = range(number + 1) if config.data == "all" else [number]
        return select(
            [sample for of_round in rounds for sample in self.samples(of_round)],
            cap=config.cap,
            dedupe=config.dedupe,
            min_score=config.min_score,
            weighting=config.weighting,
            keep_truncated=config.keep_truncated,
            seed=config.seed,
            round=number,
        )

    def _judge(self, model: object) -> dict[str, float]:
        params = self.config.evaluation.greedy
        found = pass_rate(self.validation, self.policy.local, params, accelerator=self.accelerator)
        return {"pass@1": found}

    def _some_of_train(self) -> Task:
        """Return a fixed choice of the training problems, as many as there are for validation."""
        return self.task.take(len(self.validation), seed=self.config.seed)

    def _evaluate(self, number: int, name: str, task: Task) -> Evaluation:
        """Sample a task's problems greedily, and several times if wanted, and sum up."""
        config, folder = self.config.evaluation, self.files(number).evaluation(name)
        draw = Draw(
            round=number,
            num_samples=1,
            params=config.greedy,
            seed=derive(self.config.seed, "evaluation", name),
            policy=self.policy.fingerprint(),
        )
        self._generate(folder / "greedy", task, draw, f"{name}: greedy")
        sampled: list[Sample] = []
        if config.num_samples:
            several = replace(draw, num_samples=config.num_samples, params=config.sampling)
            self._generate(folder / "sampled", task, several, f"{name}: samples")
            sampled = SampleStore(folder / "sampled").load()
        greedy = SampleStore(folder / "greedy").load()
        return summarize(task, greedy, sampled, seed=self.config.seed)

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start
