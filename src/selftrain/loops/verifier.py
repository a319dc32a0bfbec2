"""The verifier of V-STaR: a language model, trained on preferences, whose likelihood is a score."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain._core.config import load_json, save_json
from selftrain.decoding.prompts import Prompt
from selftrain.loops.candidates import Candidate, CandidateReader, best_of
from selftrain.tasks.base import Problem
from selftrain.training.batch import TokenRow
from selftrain.training.log_probs import sequence_log_probs
from selftrain.training.pretrained import load_pretrained, save_model
from selftrain.training.snapshot import weights_fingerprint

Scoring = Literal["log_prob", "log_ratio", "mean_log_prob"]

_SETTINGS, _REFERENCE = "verifier.json", "reference"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierSettings:
    """What is written beside a verifier's weights."""

    scoring: Scoring
    """How completions are scored."""
    beta: float
    """The factor of log-ratios."""
    fingerprint: str
    """Of the weights."""
    reference: str | None
    """Of the reference's weights, or the name of its adapter; None: there is none."""


class Verifier:
    r"""Scores completions by their likelihood under a model trained on preferences.

    V-STaR (arXiv 2402.06457) ranks by the log-likelihood of the whole completion, end of sequence
    included, with neither a reference nor the length taken off: ``"log_prob"``. The others are
    :math:`\beta (\log V - \log \pi_{ref})`, ``"log_ratio"``, the reward that the training loss
    speaks of, and ``"mean_log_prob"``, the log-likelihood per token.

    Args:
        model: Trained by :func:`selftrain.training.train_preferences`.
        tokenizer: Its tokenizer.
        scoring: See above.
        reference: For ``"log_ratio"``: the model that training started from, or the name of the
            adapter of ``model`` (PEFT) that holds it.
        beta: The one of the training.
        max_tokens: Tokens in a forward pass, padding included.
        accelerator: Its processes share the work, and all get the result; None makes one.

    Raises:
        ValueError: If ``"log_ratio"`` lacks a reference, another scoring has one, or an argument is
            out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        scoring: Scoring = "log_prob",
        reference: nn.Module | str | None = None,
        beta: float = 0.1,
        max_tokens: int = 16384,
        accelerator: Accelerator | None = None,
    ) -> None:
        check_choice("scoring", scoring, ("log_prob", "log_ratio", "mean_log_prob"))
        check_range("beta", beta, low=0.0, low_open=True)
        check_int("max_tokens", max_tokens, low=1)
        if (scoring == "log_ratio") != (reference is not None):
            raise ValueError(
                f"scoring={scoring!r} with reference={'None' if reference is None else 'a model'}: "
                'a reference is needed for "log_ratio", and for nothing else.'
            )
        if isinstance(reference, str) and reference not in getattr(model, "peft_config", {}):
            known = ", ".join(getattr(model, "peft_config", {})) or "none"
            raise ValueError(f"reference={reference!r} is no adapter of the model; it has {known}.")
        self.model, self.tokenizer = model, tokenizer
        self.scoring, self.reference, self.beta = scoring, reference, beta
        self._max_tokens, self._accelerator = max_tokens, accelerator
        self._reader = CandidateReader(model, tokenizer)

    def score(self, prompt: Prompt | Problem, completions: Sequence[Candidate]) -> Tensor:
        """Return the score of every completion of one prompt; see :meth:`score_all`."""
        return self.score_all([prompt], [completions])[0]

    def score_all(
        self, prompts: Sequence[Prompt | Problem], completions: Sequence[Sequence[Candidate]]
    ) -> list[Tensor]:
        """Return the scores of every prompt's completions, in large batches.

        Args:
            prompts: Text, token ids, messages, or problems. With a task that has a prefix give
                ``task.prompt(problem)``.
            completions: Texts, completions or samples. Token ids are taken where they are known and
                the completion ended by itself or was cut off; a text is encoded and closed with the
                end-of-sequence token.

        Returns:
            Float64 ``[completions]`` for each prompt, on the CPU. Of completions that failed
            (``finish_reason`` "error") -inf.

        Raises:
            ValueError: If the lists do not fit together or a prompt is empty.
        """
        return self._reader.score_all(prompts, completions, self.score_rows)

    def score_rows(self, rows: Sequence[TokenRow]) -> Tensor:
        """Return the score of every row, float64 ``[rows]``."""
        log_probs = self._log_probs(self.model, rows)
        if self.scoring == "mean_log_prob":
            lengths = [len(row.completion_ids) for row in rows]
            return log_probs / torch.tensor(lengths, dtype=torch.float64)
        if self.reference is None:
            return log_probs
        if isinstance(self.reference, str):
            with _adapter(self.model, self.reference):
                return self.beta * (log_probs - self._log_probs(self.model, rows))
        return self.beta * (log_probs - self._log_probs(self.reference, rows))

    def best(self, prompt: Prompt | Problem, completions: Sequence[Candidate]) -> int:
        """Return the place of the completion with the highest score, the first of equal ones."""
        return best_of(self.score(prompt, completions))

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and settings; of a model with adapters the adapters alone.

        A reference that is a model of its own is written beside them.
        """
        folder = Path(folder)
        reference = self.reference if isinstance(self.reference, str) else None
        if reference is not None and self.model.active_adapter != "default":
            raise ValueError(
                f"the verifier's adapter is {self.model.active_adapter!r}; beside a reference "
                'adapter only "default" can be saved and found again.'
            )
        save_model(self.model, self.tokenizer, folder)
        if isinstance(self.reference, nn.Module):
            save_model(self.reference, self.tokenizer, folder / _REFERENCE)
            reference = weights_fingerprint(self.reference)
        settings = VerifierSettings(
            scoring=self.scoring,
            beta=self.beta,
            fingerprint=weights_fingerprint(self.model),
            reference=reference,
        )
        save_json(settings, folder / _SETTINGS)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        max_tokens: int = 16384,
        accelerator: Accelerator | None = None,
    ) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the folder holds no verifier, or other weights than were saved.
        """
        folder = Path(folder)
        if not (folder / _SETTINGS).exists():
            raise ValueError(f"{folder} holds no verifier: {_SETTINGS} is missing.")
        settings = load_json(VerifierSettings, folder / _SETTINGS)
        model = load_pretrained(folder)
        reference: Any = settings.reference
        if reference is not None and hasattr(model, "peft_config"):
            model.load_adapter(folder / reference, adapter_name=reference)
        elif reference is not None:
            reference = load_pretrained(folder / _REFERENCE)
            _check_weights(folder / _REFERENCE, reference, settings.reference)
        _check_weights(folder, model, settings.fingerprint)
        accelerator = accelerator or Accelerator()
        for module in (model, reference):
            if isinstance(module, nn.Module):
                module.to(accelerator.device).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        return cls(
            model,
            tokenizer,
            scoring=settings.scoring,
            reference=reference,
            beta=settings.beta,
            max_tokens=max_tokens,
            accelerator=accelerator,
        )

    def _log_probs(self, model: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
        return sequence_log_probs(
            model, rows, max_tokens=self._max_tokens, accelerator=self._accelerator
        )


def _check_weights(folder: Path, model: nn.Module, wanted: str | None) -> None:
    found = weights_fingerprint(model)
    if found != wanted:
        raise ValueError(
            f"{folder} holds weights {found}, but the verifier was saved with {wanted}: the files "
            "(or the base model of its adapters) were changed since."
        )


@contextlib.contextmanager
def _adapter(model: Any, name: str) -> Iterator[None]:
    """Make another adapter of a PEFT model the active one for a while."""
    before = model.active_adapter
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.set_adapter(name)
        yield
    finally:
        model.set_adapter(before)
        for parameter, flag in flags:  # PEFT switches them with the adapter
            parameter.requires_grad_(flag)
