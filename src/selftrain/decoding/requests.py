"""What servers are asked and what they answer: text completion and chat, in two dialects."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.stopping import before_stop


class Request(NamedTuple):
    """One completion, as a server is asked for it."""

    path: str
    """Below the server's address."""
    body: dict[str, Any]
    """The JSON that is posted there."""


def generous_request(
    model: str,
    prompt: Prompt,
    params: SamplingParams,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Request:
    """Ask a server that knows more fields than OpenAI's, as vLLM and SGLang do.

    Messages become token ids by the tokenizer's template; without a tokenizer they are a chat.
    """
    body = {
        "model": model,
        "n": 1,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        # Always said: a server's default may be the model's own generation config.
        "top_k": -1 if params.top_k is None else params.top_k,
        "min_p": params.min_p,
        "stop": list(params.stop) or None,
        "seed": seed % 2**31,  # servers take 32 bits
        "return_token_ids": True,
        "skip_special_tokens": True,
    }
    if tokenizer is None and _is_chat(prompt):
        return Request("/chat/completions", {**body, "messages": list(prompt), "logprobs": True})
    if not isinstance(prompt, str) or not prompt:
        prompt = encode_prompt(tokenizer, prompt)
    return Request("/completions", {**body, "prompt": prompt, "logprobs": 0})


def strict_request(
    model: str,
    prompt: Prompt,
    params: SamplingParams,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Request:
    """Ask ``transformers serve``, which refuses fields that it does not know, and token ids.

    It samples only where the generation config says so, whatever the temperature; so the law is
    stated there. Messages are a chat, ids become the text that they stand for.

    Raises:
        ValueError: If a prompt of ids has no text that stands for it.
    """
    law: dict[str, Any] = {"do_sample": False}
    if not params.greedy:
        law = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_k": params.top_k or 0,
            "top_p": params.top_p,
            "min_p": params.min_p or None,
        }
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": params.max_new_tokens,
        "seed": seed % 2**31,
        "generation_config": json.dumps(law),
    }
    if params.stop:
        body["stop"] = list(params.stop)
    if _is_chat(prompt):
        return Request("/chat/completions", {**body, "messages": list(prompt)})
    if not isinstance(prompt, str) or not prompt:
        prompt = _text_of(encode_prompt(tokenizer, prompt), tokenizer)
    return Request("/completions", {**body, "prompt": prompt})


def completion_of(choice: dict[str, Any], params: SamplingParams) -> Completion | None:
    """Return what a server's choice says, or None if there is no text in it.

    Some servers leave a stop string in the text; it is cut off.
    """
    text = choice.get("text", (choice.get("message") or {}).get("content"))
    if not isinstance(text, str):
        return None
    token_ids, reason = choice.get("token_ids"), choice.get("finish_reason")
    before = before_stop(text, params.stop)
    if before is not None:  # which tokens the rest is made of, the server does not say
        return Completion(before, None, None, "stop")
    return Completion(
        text=text,
        token_ids=None if token_ids is None else tuple(token_ids),
        log_probs=_log_probs(choice.get("logprobs") or {}, params),
        finish_reason=reason if reason in ("stop", "length") else "error",
    )


def _log_probs(given: dict[str, Any], params: SamplingParams) -> tuple[float, ...] | None:
    """Return the log-probabilities, None if there are none or the law is another one."""
    plain = SamplingParams(max_new_tokens=params.max_new_tokens, stop=params.stop, seed=params.seed)
    if params != plain:
        return None
    found = given.get("token_logprobs") or [x["logprob"] for x in given.get("content") or ()]
    return tuple(map(float, found)) or None


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and bool(len(prompt)) and isinstance(prompt[0], dict)


def _text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        raise ValueError(
            "the server takes no token ids; pass text, or a tokenizer that finds the text."
        )
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    if tokenizer(text)["input_ids"] != list(ids):
        raise ValueError(
            f"the server takes no token ids, and the text {text!r} of the prompt is encoded as "
            "others; pass text."
        )
    return text
