"""A model behind an OpenAI-compatible server as a teacher.

Shape letters: N scored tokens, K tokens kept.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import torch

from selftrain._core.checks import check_int
from selftrain._core.http import JsonClient, ServerRefusedError
from selftrain.distill.targets import TopKTargets
from selftrain.training.batch import MicroBatch, TokenRow, predicting_steps

# vLLM writes this for log-probabilities of -inf, which JSON cannot hold.
_CLAMPED = -9999.0
_Pairs = list[tuple[int, float]]


class EndpointTeacher:
    """Asks a server for the most likely tokens at every scored position of given text.

    It speaks to ``/v1/completions`` as vLLM serves it: the prompt is the row's token ids, and
    ``prompt_logprobs=k`` asks what the model would have said at each of them. One token is
    generated and thrown away, for servers refuse to generate none, so a row must be one token
    shorter than the server's context. Rows are asked for concurrently.

    The server's tokenizer plays no part, but its model must be one of the student's tokenizer.
    Tokens outside the k are unknown: use a divergence with a tail. Decoder-only models only.

    Args:
        base_url: The server, ``"http://localhost:8000/v1"`` for example.
        model: The name under which the server serves the teacher.
        top_k: Tokens per position. vLLM allows 20 unless started with ``--max-logprobs``.
        max_concurrency: Most requests at a time.
        timeout: Seconds to wait for an answer.
        num_retries: How often to repeat a request after overload, a fault or silence.
        backoff: Seconds before the first repetition, doubled each time.
        api_key: The server's key, if it wants one.

    Raises:
        ValueError: If an argument is out of range or ``base_url`` is no HTTP address.

    Example:
        >>> from selftrain.distill.teachers import EndpointTeacher
        >>> with EndpointTeacher("http://localhost:8000/v1", "big") as teacher:  # doctest: +SKIP
        ...     Distiller(student, teacher, tokenizer, config).fit(rows)
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        top_k: int = 20,
        max_concurrency: int = 32,
        timeout: float = 120.0,
        num_retries: int = 5,
        backoff: float = 0.5,
        api_key: str | None = None,
    ) -> None:
        check_int("top_k", top_k, low=1)
        check_int("max_concurrency", max_concurrency, low=1)
        self.model, self.top_k, self.max_concurrency = model, top_k, max_concurrency
        self._client = JsonClient(
            base_url,
            api_key=api_key,
            timeout=timeout,
            num_retries=num_retries,
            backoff=backoff,
            num_connections=max_concurrency,
        )

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._client.base_url

    def targets(self, batch: MicroBatch) -> TopKTargets:
        """Return the server's ``[N, top_k]`` most likely tokens, best first, in float32.

        Raises:
            ValueError: If the batch is of an encoder-decoder, the server refuses, or its answer has
                no log-probabilities, too few, or those of other tokens.
            ConnectionError: If the server cannot be reached or keeps failing.
        """
        if batch.is_encoder_decoder:
            raise ValueError(
                "EndpointTeacher serves decoder-only students: a server does not score a given "
                "decoder text of an encoder-decoder. Use a local teacher, or a cache of one."
            )
        steps = [predicting_steps(row, is_encoder_decoder=False) for row in batch.token_rows]
        asked = [i for i, chosen in enumerate(steps) if chosen]
        rows = [batch.token_rows[i] for i in asked]
        found = self._ask(rows, [steps[i] for i in asked])
        device, shape = batch.labels.device, (-1, self.top_k)
        token_ids = torch.tensor([[i for i, _ in pairs] for pairs in found], dtype=torch.long)
        log_probs = torch.tensor([[p for _, p in pairs] for pairs in found], dtype=torch.float32)
        return TopKTargets(token_ids.reshape(shape).to(device), log_probs.reshape(shape).to(device))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, rows: Sequence[TokenRow], steps: Sequence[list[int]]) -> list[_Pairs]:
        """Return the best tokens at the steps of each row, one row after the other."""
        pool = ThreadPoolExecutor(max(1, min(self.max_concurrency, len(rows))))
        try:
            # In order, whichever comes first; the first failure ends the wait for the others.
            return [pairs for found in pool.map(self._ask_row, rows, steps) for pairs in found]
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask_row(self, row: TokenRow, steps: list[int]) -> list[_Pairs]:
        ids = [*row.prompt_ids, *row.completion_ids]
        body = {
            "model": self.model,
            "prompt": ids,
            "prompt_logprobs": self.top_k,
            "max_tokens": 1,
            # Else servers take the model's default, and some apply it to log-probabilities.
            "temperature": 1.0,
        }
        try:
            answer = self._client.post("/completions", body)
        except ServerRefusedError as error:
            raise ValueError(f"{error}. {self._way_out(error)}") from error
        entries = self._entries(answer, len(ids))
        return [self._best(entries[step + 1], ids[step + 1]) for step in steps]

    def _entries(self, answer: Any, num_tokens: int) -> list[Any]:
        """Return what the server says of each token of the row."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        entries = choices[0].get("prompt_logprobs") if choices else None
        if not entries:
            raise ValueError(
                f"the server at {self.base_url} answered without prompt_logprobs, so it cannot be "
                "a teacher: many servers ignore the parameter. vLLM's knows it; with another "
                "server run the teacher in process, or cache it with write_teacher_cache."
            )
        if len(entries) != num_tokens:
            raise ValueError(
                f"the server at {self.base_url} returned log-probabilities of {len(entries)} "
                f"tokens for a row of {num_tokens}: it must take token ids as they are, add none "
                "and cut none."
            )
        return entries

    def _best(self, entry: Any, token_id: int) -> _Pairs:
        """Return the ``top_k`` best of one position's tokens, of which there may be one more."""
        if entry is None:
            raise ValueError(
                f"the server at {self.base_url} has no log-probabilities for the beginning of a "
                "row: it keeps none with cached prefixes. Start it without prefix caching "
                "(vLLM: --no-enable-prefix-caching)."
            )
        # The text's own token is always among them: if not, these are another text's.
        if not isinstance(entry, dict) or str(token_id) not in entry:
            raise ValueError(
                f"the server at {self.base_url} says nothing of token {token_id} at its place in "
                "the row: it has read other tokens. Does it serve a model of this tokenizer, and "
                "take token ids as they are?"
            )
        pairs = [(int(key), _log_prob(value)) for key, value in entry.items()]
        if len(pairs) < self.top_k:
            raise ValueError(
                f"the server at {self.base_url} returned {len(pairs)} tokens at a position, "
                f"top_k={self.top_k} were asked for. Lower top_k to what it gives, at most the "
                "size of its vocabulary."
            )
        pairs.sort(key=lambda pair: (-pair[1], pair[0]))
        return pairs[: self.top_k]

    def _way_out(self, error: ServerRefusedError) -> str:
        if error.status in (401, 403):
            return "Give the server's key as api_key."
        if error.status == 404:
            return f"It serves {self._served()}; choose one of them as model, not {self.model!r}."
        if "logprobs" in error.detail:
            return (
                f"Lower top_k (it is {self.top_k}), or start the server with --max-logprobs "
                f"{self.top_k}."
            )
        return (
            "A row and one more token must fit into the server's context, and its ids into the "
            "server's vocabulary."
        )

    def _served(self) -> str:
        try:
            names = [repr(entry["id"]) for entry in self._client.get("/models")["data"]]
        except (ValueError, OSError, KeyError, TypeError):
            return "other models"
        return ", ".join(names) or "no model"


def _log_prob(value: Any) -> float:
    log_prob = float(value["logprob"])
    if math.isnan(log_prob):
        raise ValueError("the server returned a NaN log-probability; check its model's weights.")
    return -math.inf if log_prob <= _CLAMPED else log_prob
