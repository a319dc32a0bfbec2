"""Distillation of a teacher into a student, on text that the student itself writes."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_not_empty
from selftrain._core.config import load_json, save_json
from selftrain._core.io import atomic_folder, write_text
from selftrain._core.rng import derive
from selftrain.distill.config import DistillConfig, Source
from selftrain.distill.losses import step_losses
from selftrain.distill.model_card import model_card_of
from selftrain.distill.pair import check_pair, end_tokens
from selftrain.distill.reward import Reward, advantages, check_reward, gather_scores, score
from selftrain.distill.rows import EncodedRow, RowEncoder, has_completion
from selftrain.distill.sync import WeightSender
from selftrain.distill.targets import Teacher
from selftrain.distill.teachers.choose import as_teacher, restore_average, save_average
from selftrain.distill.teachers.ema import EMATeacher
from selftrain.distill.texts import check_row, draw_sources
from selftrain.distill.writer import Writer
from selftrain.nn.modes import recompute_activations, training_mode
from selftrain.training.batch import MicroBatch, TokenRow
from selftrain.training.best import Best, Judge
from selftrain.training.checkpoint import load_checkpoint, save_checkpoint
from selftrain.training.finetune import Rows
from selftrain.training.heads import Scorer
from selftrain.training.learner import Learner, RowValues, StepLosses
from selftrain.training.loop import Report, TrainingRun
from selftrain.training.optim import learning_rate_at
from selftrain.training.order import batch_indices
from selftrain.training.pretrained import load_pretrained

if TYPE_CHECKING:
    from selftrain.decoding.sampler import Sampler

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_CONFIG_FILE, _STATE_FOLDER = "distill_config.json", "training_state"
Texts = dict[int, tuple[int, ...]]  # by the row's index in the batch
# Text is tokenised when its step comes; of a data set only so many rows are read beforehand.
_ROWS_CHECKED_FIRST = 1000


class Distiller:
    r"""Trains a student to predict like a teacher on text of either, or of a data set (GKD).

    .. math:: L = (1-\lambda)\, E_{(x,y) \sim data}\, \bar D(p \| q)(y|x)
              + \lambda\, E_{x,\, y \sim q(\cdot|x)}\, \bar D(p \| q)(y|x)

    with :math:`\bar D` the divergence averaged over the tokens of y (arXiv 2306.13649, equation 2
    and algorithm 1). No gradient flows through the sampling of y. Start from a student that can
    write: on random text the teacher's feedback is useless.

    The same rows, seed and step give the same update, whatever the micro-batches and the number of
    processes (up to rounding): every completion has its own seed.

    Args:
        student: The model to train, in place.
        teacher: The model to learn from, which is frozen and put in evaluation mode; or anything
            with ``targets`` (:mod:`selftrain.distill.teachers`: a server, a cache, an average of
            the student); or None, and a student with adapters (PEFT) learns from its own base.
        tokenizer: The tokenizer of both. It needs no pad token: padding is told by masks.
        config: Settings; None: the defaults.
        sampler: Samples from the student; None: an in-process sampler. It must see the student's
            current weights.
        teacher_sampler: Samples from the teacher, for ``fixed_source="teacher"`` or ``"both"``;
            None: in process, if the teacher is a model.
        reward: Scores the student's own texts, for ``reward_weight`` above 0.
        teacher_tokenizer: The teacher's, if it comes with its own, to check that both agree.
        accelerator: The process layer; None makes one.

    Raises:
        ValueError: If the models cannot be compared token by token, or are one, or if there is a
            reward without ``reward_weight`` or the reverse.
        TypeError: If the teacher is None and the student has no adapters.

    Example:
        >>> distiller = Distiller(student, teacher, tokenizer)  # doctest: +SKIP
        >>> report = distiller.fit([{"prompt": "2 + 2 ="}])  # doctest: +SKIP
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | Teacher | None,
        tokenizer: PreTrainedTokenizerBase,
        config: DistillConfig | None = None,
        *,
        sampler: "Sampler | None" = None,
        teacher_sampler: "Sampler | None" = None,
        reward: Reward | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config = config or DistillConfig()
        local = teacher if isinstance(teacher, nn.Module) else None
        self._pair = check_pair(student, local, tokenizer, teacher_tokenizer)
        self.config.warn_if_off_distribution()
        check_reward(self.config, reward)
        if local is None and teacher_sampler is None and "teacher" in self.config.sources:
            raise ValueError(
                f"fixed_source={self.config.fixed_source!r} needs text of the teacher, which is no "
                "model in this process; pass a teacher_sampler."
            )
        self.student, self.teacher, self.tokenizer = student, teacher, tokenizer
        self.accelerator = accelerator or Accelerator()
        if self.config.gradient_checkpointing:
            recompute_activations(student)
        self._learner = Learner(student, self.config, self.accelerator)
        sharded = self.accelerator.distributed_type in _SHARDED
        self._student_scores = Scorer(student, hidden=not sharded)
        self._teacher = as_teacher(teacher, student, self.accelerator)
        self._reward = reward
        self._writer = Writer(
            student,
            local,
            tokenizer,
            self.config,
            self._pair,
            samplers={"student": sampler, "teacher": teacher_sampler},
            send_weights=WeightSender(sampler, student, self.accelerator),
        )
        eos_token_ids = end_tokens(student, tokenizer)
        self._encode = RowEncoder(
            tokenizer,
            eos_token_ids=eos_token_ids,
            max_prompt_tokens=self.config.max_prompt_tokens,
        )
        self._ends = torch.tensor(sorted(eos_token_ids), device=self.accelerator.device)
        self._last_metrics: dict[str, float] = {}
        self.num_steps = 0
        """Optimizer steps taken."""
        self.num_scored_tokens = 0
        """Tokens the loss was computed on so far, over all processes."""

    def step(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Take one optimizer step on the batch: choose or sample its text, compare, update.

        All processes call it with the same batch; each takes its share of the rows.

        Args:
            batch: Rows ``{"prompt": str | messages, "completion": str, "weight": float}``, or with
                ``"prompt_ids"`` and ``"completion_ids"``; completions only where the data set is a
                source, the weight always optional.

        Returns:
            ``loss``; ``divergence/<source>`` for the sources used; ``acceptance``,
            ``top1_agreement`` and entropies; ``completion_length`` and ``truncated_fraction``;
            ``grad_norm``, ``learning_rate``, ``num_scored_tokens`` (also ``_total``) and
            ``tokens_per_second``; with a reward ``reward/mean`` and ``reward/std``. Means weigh
            tokens as the loss does. :meth:`fit` adds ``staleness``, the steps since the student
            wrote the text, where ``generate_every`` is above 1.

        Raises:
            ValueError: If a row lacks what its source needs, or is too long.
            FloatingPointError: If the loss is not finite; the parameters are unchanged then.
        """
        return self._take_step(batch, None)

    def _take_step(
        self, batch: Sequence[Mapping[str, Any]], ready: Texts | None
    ) -> dict[str, float]:
        """Take a step, for which the student may have written before."""
        start = time.perf_counter()
        check_not_empty("batch", batch)
        step = self.num_steps
        sources = draw_sources(self.config, step, len(batch))
        encoded = {i: self._checked(batch[i], i) for i in self._local(len(batch))}
        rows = self._writer.complete(
            encoded, sources, ("sample", step), num_steps=step, ready=ready
        )
        rewards = self._rewards(batch, rows, sources)
        if rewards:
            gains = advantages(rewards, self.config.baseline)
            rows = {i: replace(row, advantage=gains.get(i, 0.0)) for i, row in rows.items()}
        result = self._learner.learn(
            rows,
            self._losses,
            step=step,
            num_rows=len(batch),
            names=[f"row {i} (source: {source})" for i, source in enumerate(sources)],
        )
        self.num_steps += 1
        self.num_scored_tokens += int(sum(result.counts))
        if isinstance(self._teacher, EMATeacher):
            self._teacher.update()
        metrics = self._metrics(result, sources, step, time.perf_counter() - start)
        if rewards:
            metrics["reward/mean"] = statistics.fmean(rewards.values())
            metrics["reward/std"] = statistics.pstdev(rewards.values())
        self._last_metrics = metrics
        return metrics

    def fit(
        self,
        dataset: Rows,
        *,
        eval_dataset: Rows | None = None,
        output_dir: str | Path | None = None,
        judge: Judge | None = None,
        keep_best: str | None = None,
        show_progress: bool = True,
        title: str = "distill",
    ) -> Report:
        """Train until ``config.num_steps`` steps are taken, continuing a run in ``output_dir``.

        An interrupted run, called again with the same arguments, continues at its last checkpoint;
        on a CPU the result equals that of an uninterrupted run bit for bit.

        Args:
            dataset: Rows as for :meth:`step`; a list, a ``datasets.Dataset``, or alike.
            eval_dataset: Rows for :meth:`evaluate`, logged as ``eval/...``.
            output_dir: Where metrics and the newest checkpoint go; None: nothing is written.
            judge: Called with the student whenever it is evaluated; returns numbers to log, as
                :class:`selftrain.distill.DraftEvaluator` does.
            keep_best: Which of the evaluation's numbers to choose a student by: the one where it
                was largest lies in ``output_dir/best`` afterwards.
            show_progress: Whether to show a bar with the loss and the time left.
            title: The run's name on the bar and in the log.

        Raises:
            ValueError: If a data set is empty, a row does not suit the configuration, or
                ``keep_best`` is given without anything that measures it or a place for the student.
            RunConflictError: If ``output_dir`` holds a run with another configuration.
            FloatingPointError: If the loss is not finite.
        """
        check_not_empty("dataset", dataset)
        if eval_dataset is not None:
            check_not_empty("eval_dataset", eval_dataset)
        for i in range(min(len(dataset), _ROWS_CHECKED_FIRST)):
            self._checked(dataset[i], i)
        best = Best(output_dir, keep_best, judged=judge is not None or eval_dataset is not None)
        ahead: dict[int, Texts] = {}  # dies with the run: to other rows the texts would be wrong
        with TrainingRun(
            self._learner,
            stage=title,
            output_dir=output_dir,
            first_step=self.num_steps,
            show_progress=show_progress,
        ) as run:
            self._restore(run.first_step, run.extra)
            restore_average(self._teacher, output_dir, run.first_step)
            for step in run.steps():
                if self.config.generate_every > 1 and step % self.config.generate_every == 0:
                    ahead = self._sample_ahead(dataset, step)
                batch = [dataset[i] for i in self._batch(dataset, step)]
                metrics = self._take_step(batch, ahead.get(step))
                if step in ahead:
                    metrics["staleness"] = float(step % self.config.generate_every)
                if run.eval_due(step):
                    evaluation = self._evaluation(eval_dataset, judge)
                    metrics |= {f"eval/{name}": value for name, value in evaluation.items()}
                    if self.accelerator.is_main_process:
                        best.offer(evaluation, step + 1, self._save_student)
                if run.save_due(step):
                    save_average(self._teacher, output_dir, step + 1, self.accelerator)
                run.finish_step(step, metrics, {"num_scored_tokens": self.num_scored_tokens})
        return run.report()

    def evaluate(self, dataset: Rows) -> dict[str, float]:
        """Return loss, acceptance, agreement and entropies on given or the student's own text.

        Rows with a completion are judged on it; for the others the student writes one, with the
        same seed every time.
        """
        check_not_empty("dataset", dataset)
        # Of every row, so that all processes know what is to be sampled.
        sources: list[Source] = [
            "dataset" if has_completion(dataset[i]) else "student" for i in range(len(dataset))
        ]
        encoded = {i: self._encode(dataset[i]) for i in self._local(len(dataset))}
        for i, row in encoded.items():
            if sources[i] == "student" and not row.prompt_ids:
                raise ValueError(f"row {i} has neither a completion nor a prompt.")
        rows = self._writer.complete(encoded, sources, ("eval",), num_steps=self.num_steps)
        result = self._learner.measure(rows, self._losses, num_rows=len(dataset))
        return self._means(result)

    def _evaluation(self, dataset: Rows | None, judge: Judge | None) -> dict[str, float]:
        found = {} if dataset is None else self.evaluate(dataset)
        if judge is not None:
            with training_mode(False, self.student), torch.no_grad():
                found |= judge(self.student)
        return found

    def _save_student(self, path: Path) -> None:
        with atomic_folder(path) as folder:
            self._write_student(folder)

    def _write_student(self, folder: Path) -> None:
        self.student.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        card = model_card_of(self.student, self.teacher, self.config, self._last_metrics)
        write_text(folder / "README.md", card)

    def save(self, path: str | Path) -> None:
        """Write student, tokenizer, model card, configuration and training state to a folder.

        The student lies there as ``from_pretrained`` expects it; :meth:`load` continues training.
        """
        if self.accelerator.is_main_process:
            with atomic_folder(path) as folder:
                self._write_student(folder)
                save_json(self.config, folder / _CONFIG_FILE)
                save_checkpoint(
                    folder / _STATE_FOLDER,
                    self.num_steps,
                    self.student,
                    self._learner.optimizer,
                    {"num_scored_tokens": self.num_scored_tokens},
                )
        self.accelerator.wait_for_everyone()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        teacher: PreTrainedModel | Teacher | None,
        sampler: "Sampler | None" = None,
        teacher_sampler: "Sampler | None" = None,
        reward: Reward | None = None,
        accelerator: Accelerator | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote, to continue training with the same teacher.

        Args:
            path: The folder.
            teacher: The teacher; it is not saved with the student.
            sampler: As for the constructor; None: an in-process sampler.
            teacher_sampler: As for the constructor.
            reward: As for the constructor.
            accelerator: As for the constructor.
        """
        from transformers import AutoTokenizer

        path = Path(path)
        distiller = cls(
            load_pretrained(path),
            teacher,
            AutoTokenizer.from_pretrained(path),  # pyrefly: ignore[bad-argument-type]
            load_json(DistillConfig, path / _CONFIG_FILE),
            sampler=sampler,
            teacher_sampler=teacher_sampler,
            reward=reward,
            accelerator=accelerator,
        )
        learner = distiller._learner
        checkpoint = load_checkpoint(path / _STATE_FOLDER, learner.module, learner.optimizer)
        if checkpoint is None:
            raise ValueError(f"{path} holds no training state; was it written by Distiller.save?")
        distiller._restore(checkpoint.step, checkpoint.extra)
        return distiller

    def _restore(self, step: int, extra: dict[str, Any]) -> None:
        self.num_steps = step
        self.num_scored_tokens = extra.get("num_scored_tokens", self.num_scored_tokens)

    def _local(self, num_rows: int) -> list[int]:
        return [i for i in self._learner.local_indices(num_rows) if i >= 0]

    def _checked(self, row: Mapping[str, Any], index: int) -> EncodedRow:
        encoded = self._encode(row)
        check_row(encoded, f"row {index}", self.config, self._pair)
        return encoded

    def _sample_ahead(self, dataset: Rows, first: int) -> dict[int, Texts]:
        """Sample the on-policy text of ``generate_every`` steps at once, from today's student.

        Returns:
            The texts of this process's rows by row, for each step that has any on some process.
        """
        ahead: dict[int, Texts] = {}
        wanted: list[tuple[int, int, EncodedRow]] = []
        for step in range(first, min(first + self.config.generate_every, self.config.num_steps)):
            chosen = self._batch(dataset, step)
            sources = draw_sources(self.config, step, len(chosen))
            if "student" in sources:
                ahead[step] = {}
            for i in self._local(len(chosen)):
                if sources[i] == "student":
                    wanted.append((step, i, self._checked(dataset[chosen[i]], i)))
        seeds = [derive(self.config.seed, "sample", step, i) for step, i, _ in wanted]
        encoded = [row for *_, row in wanted]
        texts = self._writer.sample("student", encoded, seeds, num_steps=first)
        for (step, i, _), text in zip(wanted, texts, strict=True):
            ahead[step][i] = text
        return ahead

    def _batch(self, dataset: Rows, step: int) -> list[int]:
        """Return which rows a step learns from."""
        return batch_indices(
            self.config.seed, step, num_items=len(dataset), batch_size=self.config.batch_size
        )

    def _losses(self, batch: MicroBatch, weights: Tensor) -> StepLosses:
        kind = self.config.objective_at(self.num_steps)
        gains = self._gains(batch)
        alone = kind == "nll" or (gains is not None and self.config.reward_weight == 1)
        # The teacher first: its activations are gone before the student's graph is built.
        teacher = None if alone else self._teacher.targets(batch)
        losses = step_losses(
            self._student_scores(self._learner.model, batch),
            teacher,
            labels=batch.labels,
            weights=weights,
            config=self.config,
            kind=kind,
            gains=gains,
        )
        ended = torch.isin(batch.labels, self._ends).float()
        return StepLosses(losses.objective, {"ended": ended, **losses.values})

    def _gains(self, batch: MicroBatch) -> Tensor | None:
        """Return what the policy gradient multiplies each token's log-likelihood by, if anything.

        Its sum over a sequence enters with the sequence's weight: undone is the mean over tokens
        that the weights take under ``normalize="sequence"``.
        """
        if self.config.reward_weight == 0 or not self.student.training:
            return None
        per_row = [
            row.advantage * (count if self.config.normalize == "sequence" else 1)
            for row, count in zip(batch.token_rows, batch.counts, strict=True)
        ]
        return torch.tensor(per_row, device=batch.rows.device)[batch.rows]

    def _rewards(
        self,
        batch: Sequence[Mapping[str, Any]],
        rows: Mapping[int, TokenRow],
        sources: Sequence[Source],
    ) -> dict[int, float]:
        """Return the rewards of the student's texts by row, of all processes."""
        if self._reward is None or "student" not in sources:
            return {}
        # A row of weight 0 is as good as absent: it has no say in the baseline either.
        mine = [i for i in rows if sources[i] == "student" and rows[i].weight]
        # One by one: transformers decodes an empty batch to one empty text.
        texts: Any = [
            self.tokenizer.decode(list(rows[i].completion_ids), skip_special_tokens=True)
            for i in mine
        ]
        scores = score(self._reward, [batch[i] for i in mine], texts)
        found = dict(zip(mine, scores, strict=True))
        return gather_scores(found, len(batch), self.accelerator)

    def _means(self, result: RowValues) -> dict[str, float]:
        names = [name for name in result.sums if name != "ended"]
        return {name: result.mean(name, self.config.normalize) for name in names}

    def _metrics(
        self, result: RowValues, sources: Sequence[Source], step: int, seconds: float
    ) -> dict[str, float]:
        num_rows, num_tokens = len(result.counts), sum(result.counts)
        distance = "distance" if "distance" in result.sums else "loss"
        # The policy gradient alone measures no divergence.
        named = sorted(set(sources)) if self.config.reward_weight < 1 else []
        by_source = {
            f"divergence/{source}": result.mean(
                distance, self.config.normalize, [s == source for s in sources]
            )
            for source in named
        }
        return {
            **self._means(result),
            **by_source,
            "completion_length": num_tokens / num_rows,
            "truncated_fraction": 1.0 - sum(result.sums["ended"]) / num_rows,
            "grad_norm": result.grad_norm,
            "learning_rate": learning_rate_at(step, self.config.num_steps, self.config.optim),
            "num_scored_tokens": num_tokens,
            "num_scored_tokens_total": float(self.num_scored_tokens),
            "tokens_per_second": num_tokens / seconds,
        }
