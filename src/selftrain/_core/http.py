"""JSON over HTTP to a model server, with patience: time limits, retries, pooled connections."""

import threading
import time
from typing import Any, Self

from selftrain._core.checks import check_int, check_range

# Overload, restarts and time limits pass; every other refusal is final.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 30.0


class ServerRefusedError(ValueError):
    """The server understood that it will not answer; ``status`` and ``detail`` say why.

    Args:
        message: What to tell the user.
        status: The HTTP status code.
        detail: The server's own words.
    """

    def __init__(self, message: str, *, status: int, detail: str) -> None:
        super().__init__(message)
        self.status, self.detail = status, detail


class JsonClient:
    """Posts JSON to one server; safe to use from several threads.

    Args:
        base_url: What every path is appended to, ``"http://localhost:8000/v1"`` for example.
        api_key: Sent as a bearer token; None: nothing is sent.
        timeout: Seconds to wait for a connection, and for each answer.
        num_retries: How often a request that failed for a passing reason is sent again.
        backoff: Seconds before the first retry, doubled for each one after it; a server that names
            a time itself (``Retry-After``) is obeyed, up to half a minute.
        num_connections: Most connections at a time.
        max_rate: Most requests in a second, repeated ones included; None for no limit.

    Raises:
        ValueError: If the address is no HTTP address, or a number is out of range.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        num_retries: int = 5,
        backoff: float = 0.5,
        num_connections: int = 32,
        max_rate: float | None = None,
    ) -> None:
        import httpx

        check_range("timeout", timeout, low=0.0, low_open=True)
        check_int("num_retries", num_retries, low=0)
        check_range("backoff", backoff, low=0.0)
        if max_rate is not None:
            check_range("max_rate", max_rate, low=0.0, low_open=True)
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url must begin with http:// or https://, got {base_url!r}; "
                'for example "http://localhost:8000/v1".'
            )
        self.base_url = base_url.rstrip("/")
        self._num_retries, self._backoff, self._timeout = num_retries, backoff, timeout
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate
        self._next_turn, self._turns = 0.0, threading.Lock()
        self._client = httpx.Client(
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=timeout,
            limits=httpx.Limits(max_connections=num_connections),
        )

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the server's answer to ``body``.

        Raises:
            ServerRefusedError: If the server refuses for good, or its answer is not JSON.
            ConnectionError: If it cannot be reached, or is still failing after the last retry.
        """
        return self._request("POST", path, body)

    def get(self, path: str) -> Any:
        """Return what lies at ``path``; raises as :meth:`post`."""
        return self._request("GET", path, None)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        import httpx

        problem, wait = "", 0.0
        for attempt in range(self._num_retries + 1):
            if attempt:
                time.sleep(wait)
            wait = min(self._backoff * 2**attempt, _LONGEST_WAIT)
            self._wait_for_turn()
            try:
                response = self._client.request(method, self.base_url + path, json=body)
            except httpx.TimeoutException:
                problem = f"no answer within {self._timeout:g} s"
                continue
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                continue
            if response.status_code not in _PASSING:
                return self._content(response, path)
            problem = f"status {response.status_code}: {_detail(response)}"
            wait = _retry_after(response, wait)
        raise ConnectionError(
            f"{self.base_url} did not answer in {self._num_retries + 1} attempts; the last: "
            f"{problem}. Is the server up and the address right? If it is only slow, raise timeout "
            "or num_retries, or ask for less at a time."
        )

    def _wait_for_turn(self) -> None:
        """Take the next turn that the rate allows, and wait for it."""
        if self._interval == 0.0:
            return
        with self._turns:
            now = time.monotonic()
            turn = max(now, self._next_turn)
            self._next_turn = turn + self._interval
        time.sleep(turn - now)

    def _content(self, response: Any, path: str) -> Any:
        status = response.status_code
        if status >= 300:
            detail = _detail(response)
            raise ServerRefusedError(
                f"{self.base_url}{path} answered with status {status}: {detail}",
                status=status,
                detail=detail,
            )
        try:
            return response.json()
        except ValueError as error:
            text = response.text[:80]
            raise ServerRefusedError(
                f"{self.base_url}{path} answered with something that is not JSON: {text!r}. Is it "
                'a model server\'s address? They usually end in "/v1".',
                status=status,
                detail=text,
            ) from error


def _detail(response: Any) -> str:
    """Return the message within an error's body, wherever servers put it."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:300].strip()
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or body)[:300]


def _retry_after(response: Any, default: float) -> float:
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_WAIT)
    except (KeyError, ValueError):  # absent, or a date
        return default
