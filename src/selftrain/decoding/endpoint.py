"""Completions from an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``."""

import itertools
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.http import JsonClient, ServerRefusedError
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt
from selftrain.decoding.requests import Request, completion_of, generous_request, strict_request
from selftrain.decoding.sampler import row_seeds_of


class EndpointSampler:
    """Samples from a model behind ``/v1/completions`` or ``/v1/chat/completions``.

    Every completion is one request with its own seed, so that a server that ignores ``n`` returns
    what was asked for, and one that honours ``seed`` repeats it. What fails for good after its
    retries comes back as a completion with ``finish_reason="error"``, and the others are kept.

    The first request is sent alone. If the server refuses its fields as ``transformers serve``
    does, all are sent as that server takes them: the law as a generation config, messages as a
    chat, token ids as text. That server seeds one generator for all requests, so that ``seed``
    repeats a result only at ``max_concurrency=1``.

    ``token_ids`` are there if the server returns them (vLLM does when asked, and it is), and None
    otherwise: text does not say which ids it was made of. ``log_probs`` are there if the server
    returns them and the law is not warped, for servers give those of the law before warping.

    Args:
        base_url: The server, ``"http://localhost:8000/v1"`` for example.
        model: The name under which the server serves the model.
        tokenizer: With it chat messages are sent as the ids of its template; without, to the
            server's chat route, whose template it then is. Text and ids need none.
        max_concurrency: Most requests at a time.
        timeout: Seconds to wait for an answer.
        num_retries: How often to repeat a request after overload, a fault or silence.
        backoff: Seconds before the first repetition, doubled each time.
        api_key: The server's key, if it wants one.
        max_rate: Most requests in a second, repeated ones included; None for no limit.

    Raises:
        ValueError: If an argument is out of range or ``base_url`` is no HTTP address.

    Example:
        >>> from selftrain import EndpointSampler, SamplingParams
        >>> sampler = EndpointSampler("http://localhost:8000/v1", "policy")  # doctest: +SKIP
        >>> sampler.sample(["2 + 2 ="], num_samples=8, params=SamplingParams())  # doctest: +SKIP
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_concurrency: int = 32,
        timeout: float = 600.0,
        num_retries: int = 5,
        backoff: float = 0.5,
        api_key: str | None = None,
        max_rate: float | None = None,
    ) -> None:
        check_int("max_concurrency", max_concurrency, low=1)
        self.model, self.tokenizer, self.max_concurrency = model, tokenizer, max_concurrency
        self._base_model = model
        self._dialect = generous_request
        # A server may outlive this process, and refuses a name that it has loaded already.
        self._adapters = (f"{model}-{secrets.token_hex(4)}-{i}" for i in itertools.count(1))
        self._client = JsonClient(
            base_url,
            api_key=api_key,
            timeout=timeout,
            num_retries=num_retries,
            backoff=backoff,
            num_connections=max_concurrency,
            max_rate=max_rate,
        )

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int = 1,
        params: SamplingParams | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """Return ``num_samples`` completions of every prompt; see :meth:`Sampler.sample`.

        Raises:
            ValueError: If there is no prompt or one is empty, ``seeds`` has the wrong shape, or the
                server refuses the first request (a wrong name or key would fail all of them).
            ConnectionError: If the server cannot be reached at all.
        """
        params = params or SamplingParams()
        check_not_empty("prompts", prompts)
        check_int("num_samples", num_samples, low=1)
        row_seeds = row_seeds_of(len(prompts), num_samples, params, seeds)
        asked = [
            (prompt, params, seed)
            for prompt, of_prompt in zip(prompts, row_seeds, strict=True)
            for seed in of_prompt
        ]
        for prompt in prompts:  # so that a bad one is found before anything is sent
            self._request(prompt, params, 0)
        first = self._first(*asked[0])
        requests = [self._request(*one) for one in asked[1:]]
        pool = ThreadPoolExecutor(max(1, min(self.max_concurrency, len(requests))))
        try:
            rest = list(pool.map(lambda request: self._try(request, params), requests))
        finally:
            pool.shutdown(cancel_futures=True)
        found = [first, *rest]
        return [found[i : i + num_samples] for i in range(0, len(found), num_samples)]

    def load_weights(self, path: Path) -> None:
        """Let the server sample with the LoRA adapter in the folder ``path`` from now on.

        For vLLM, started with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=True``, and
        able to read the same path. The adapter loaded before it is unloaded.

        Raises:
            ValueError: If the folder holds no adapter, or the server refuses it.
            ConnectionError: If the server cannot be reached.
        """
        if not (Path(path) / "adapter_config.json").exists():
            raise ValueError(
                f"{path} holds no adapter_config.json. A running server takes LoRA adapters; to "
                "serve full weights, restart it on them."
            )
        before = self.model
        name, place = next(self._adapters), str(Path(path).resolve())
        self._administer("/load_lora_adapter", {"lora_name": name, "lora_path": place})
        self.model = name
        if before != self._base_model:
            self._administer("/unload_lora_adapter", {"lora_name": before})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _request(self, prompt: Prompt, params: SamplingParams, seed: int) -> Request:
        return self._dialect(self.model, prompt, params, seed, self.tokenizer)

    def _first(self, prompt: Prompt, params: SamplingParams, seed: int) -> Completion:
        """Complete one prompt alone: what is wrong with it is wrong with all.

        It also shows which dialect the server speaks.
        """
        try:
            return self._complete(self._request(prompt, params, seed), params)
        except ServerRefusedError as error:
            unknown = error.status == 422 and "unexpected field" in error.detail.lower()
            if not unknown or self._dialect is strict_request:
                raise self._refusal(error) from error
        self._dialect = strict_request
        try:
            return self._complete(self._request(prompt, params, seed), params)
        except ServerRefusedError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: ServerRefusedError) -> ValueError:
        return ValueError(f"{error}. Is {self.model!r} what the server serves?")

    def _try(self, request: Request, params: SamplingParams) -> Completion:
        try:
            return self._complete(request, params)
        except (ValueError, ConnectionError):
            return Completion("", None, None, "error")

    def _complete(self, request: Request, params: SamplingParams) -> Completion:
        answer = self._client.post(request.path, request.body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        found = completion_of(choices[0], params) if choices else None
        if found is None:
            raise ValueError(
                f"the server at {self._client.base_url} returned no completion: "
                f"{json.dumps(answer)[:200]}"
            )
        return found

    def _administer(self, path: str, body: dict[str, Any]) -> None:
        try:
            self._client.post(path, body)
        except ServerRefusedError as error:
            if error.status == 200:  # vLLM answers with a sentence, not with JSON
                return
            raise ValueError(
                f"{error}. Adapters are loaded by vLLM started with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            ) from error
