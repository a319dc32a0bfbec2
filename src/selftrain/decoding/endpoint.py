"""Completions from an OpenAI-compatible server: vLLM, SGLang, ``transformers serve``."""

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.http import JsonClient, ServerRefusedError
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.sampler import row_seeds_of


class EndpointSampler:
    """Samples from a model behind ``/v1/completions``.

    Every completion is one request with its own seed, so that a server that ignores ``n`` returns
    what was asked for, and one that honours ``seed`` repeats it. What fails for good after its
    retries comes back as a completion with ``finish_reason="error"``, and the others are kept.

    ``token_ids`` are there if the server returns them (vLLM does when asked, and it is), and None
    otherwise: text does not say which ids it was made of. ``log_probs`` are there if the server
    returns them and the law is not warped, for servers give those of the law before warping.

    Args:
        base_url: The server, ``"http://localhost:8000/v1"`` for example.
        model: The name under which the server serves the model.
        tokenizer: For chat messages, which are sent as token ids; text and ids need none.
        max_concurrency: Most requests at a time.
        timeout: Seconds to wait for an answer.
        num_retries: How often to repeat a request after overload, a fault or silence.
        backoff: Seconds before the first repetition, doubled each time.
        api_key: The server's key, if it wants one.

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
    ) -> None:
        check_int("max_concurrency", max_concurrency, low=1)
        self.model, self.tokenizer, self.max_concurrency = model, tokenizer, max_concurrency
        self._base_model = model
        self._adapters = itertools.count(1)
        self._client = JsonClient(
            base_url,
            api_key=api_key,
            timeout=timeout,
            num_retries=num_retries,
            backoff=backoff,
            num_connections=max_concurrency,
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
        bodies = [
            self._body(self._encoded(prompt), params, seed)
            for prompt, of_prompt in zip(prompts, row_seeds, strict=True)
            for seed in of_prompt
        ]
        first = self._complete(bodies[0], params)  # alone: what is wrong with it is wrong with all
        pool = ThreadPoolExecutor(max(1, min(self.max_concurrency, len(bodies) - 1)))
        try:
            rest = list(pool.map(lambda body: self._try(body, params), bodies[1:]))
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
        name = f"{self._base_model}-{next(self._adapters)}"
        self._administer("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
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

    def _encoded(self, prompt: Prompt) -> str | list[int]:
        """Return text as it is, and messages as the ids of the chat template."""
        if isinstance(prompt, str) and prompt:
            return prompt
        return encode_prompt(self.tokenizer, prompt)

    def _body(self, prompt: str | list[int], params: SamplingParams, seed: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompt,
            "n": 1,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            # Always said: a server's default may be the model's own generation config.
            "top_k": -1 if params.top_k is None else params.top_k,
            "min_p": params.min_p,
            "stop": list(params.stop) or None,
            "seed": seed % 2**31,  # servers take 32 bits
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": True,
        }

    def _try(self, body: dict[str, Any], params: SamplingParams) -> Completion:
        try:
            return self._complete(body, params)
        except (ValueError, ConnectionError):
            return Completion("", None, None, "error")

    def _complete(self, body: dict[str, Any], params: SamplingParams) -> Completion:
        try:
            answer = self._client.post("/completions", body)
        except ServerRefusedError as error:
            raise ValueError(f"{error}. Is {self.model!r} what the server serves?") from error
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not choices or not isinstance(choices[0].get("text"), str):
            raise ValueError(
                f"the server at {self._client.base_url} returned no completion: "
                f"{json.dumps(answer)[:200]}"
            )
        choice = choices[0]
        token_ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        warped = params != SamplingParams(
            max_new_tokens=params.max_new_tokens, stop=params.stop, seed=params.seed
        )
        log_probs = None if warped else (choice.get("logprobs") or {}).get("token_logprobs")
        return Completion(
            text=choice["text"],
            token_ids=None if token_ids is None else tuple(token_ids),
            log_probs=None if not log_probs else tuple(map(float, log_probs)),
            finish_reason=reason if reason in ("stop", "length") else "error",
        )

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
