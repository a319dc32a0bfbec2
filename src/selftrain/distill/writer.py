"""Text for the rows of a batch: the data set's own, or sampled from the student or the teacher."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from selftrain._core.rng import derive
from selftrain.distill.config import DistillConfig, Source
from selftrain.distill.pair import Pair
from selftrain.distill.rows import EncodedRow
from selftrain.distill.sync import WeightSender
from selftrain.nn.modes import training_mode
from selftrain.training.batch import TokenRow

if TYPE_CHECKING:
    from selftrain.decoding.sampler import Sampler


class Writer:
    """Completes rows, sampling where their source says so.

    Args:
        student: The student.
        teacher: The teacher, if it is a model in this process.
        tokenizer: The tokenizer of both.
        config: How to sample.
        pair: What both models know.
        samplers: What samples from whom; None: an in-process sampler of that model.
        send_weights: Called before the student's sampler is used.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        tokenizer: PreTrainedTokenizerBase,
        config: DistillConfig,
        pair: Pair,
        *,
        samplers: Mapping[str, "Sampler | None"],
        send_weights: WeightSender,
    ) -> None:
        self._models = {"student": student, "teacher": teacher}
        self._tokenizer, self._config, self._pair = tokenizer, config, pair
        self._samplers = dict(samplers)
        self._send_weights = send_weights

    def complete(
        self,
        rows: Mapping[int, EncodedRow],
        sources: Sequence[Source],
        path: tuple[int | str, ...],
        *,
        num_steps: int,
        ready: Mapping[int, tuple[int, ...]] | None = None,
    ) -> dict[int, TokenRow]:
        """Return the rows with the text of their sources; all processes call it together.

        Args:
            rows: Rows by their index in the batch.
            sources: The source of every row of the batch.
            path: With the row's index it names the seed of its sample.
            num_steps: Steps that the student has taken.
            ready: The student's texts, if they were sampled before.
        """
        completions = {i: row.completion_ids or () for i, row in rows.items()} | dict(ready or {})
        for source in ("student", "teacher"):
            # The same on every process, rows of its own or not: some wait for each other.
            if source not in sources or (source == "student" and ready is not None):
                continue
            chosen = [i for i in rows if sources[i] == source]
            seeds = [derive(self._config.seed, *path, i) for i in chosen]
            sampled = self.sample(source, [rows[i] for i in chosen], seeds, num_steps=num_steps)
            completions |= zip(chosen, sampled, strict=True)
        return {
            i: TokenRow(
                prompt_ids=row.prompt_ids or (), completion_ids=completions[i], weight=row.weight
            )
            for i, row in rows.items()
        }

    def sample(
        self, source: str, rows: Sequence[EncodedRow], seeds: Sequence[int], *, num_steps: int
    ) -> list[tuple[int, ...]]:
        """Return one sampled completion per row; the model is in evaluation mode meanwhile.

        All processes call it together, those without rows too.

        Args:
            source: "student" or "teacher".
            rows: The prompts.
            seeds: One per row, so that a completion depends on nothing else.
            num_steps: Steps that the student has taken.

        Raises:
            ValueError: If the sampler fails, gives no token ids, or ids that one model lacks.
        """
        if source == "student":
            self._send_weights(num_steps)
        if not rows:
            return []
        model = self._models[source]
        prompts = [list(row.prompt_ids or ()) for row in rows]
        with training_mode(False, *([model] if model is not None else [])), torch.no_grad():
            sampled = self._sampler(source).sample(
                prompts,
                num_samples=1,
                params=self._config.sampling,
                seeds=[[seed] for seed in seeds],
            )
        return [self._ids(completion) for (completion,) in sampled]

    def _ids(self, completion: Any) -> tuple[int, ...]:
        if completion.token_ids is None or completion.finish_reason == "error":
            raise ValueError(
                f"the sampler returned no token ids (finish reason {completion.finish_reason!r}); "
                "distillation needs the ids that were sampled."
            )
        if max(completion.token_ids, default=0) >= self._pair.num_tokens:
            raise ValueError(
                f"token {max(completion.token_ids)} was sampled, but the models share only "
                f"0..{self._pair.num_tokens - 1}. Remove the extra rows: "
                "model.resize_token_embeddings."
            )
        return completion.token_ids

    def _sampler(self, source: str) -> "Sampler":
        sampler = self._samplers[source]
        if sampler is None:
            from selftrain.decoding.sampler import HFSampler
            from selftrain.decoding.seq2seq_sampler import EncoderDecoderSampler

            model: Any = self._models[source]
            seq2seq = getattr(model.config, "is_encoder_decoder", False)
            kind = EncoderDecoderSampler if seq2seq else HFSampler
            batch_size = self._config.micro_batch_size or self._config.batch_size
            sampler = kind(model, self._tokenizer, batch_size=batch_size)
            self._samplers[source] = sampler
        return sampler
