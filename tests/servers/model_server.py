"""A loopback server that answers /v1/completions as vLLM does, from a real model."""

import contextlib
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class ModelServer:
    """Serves ``model`` under ``name``.

    ``faults`` is a list that requests use up first: a status code, a status code with headers, a
    number of seconds to sleep, or text to send in place of an answer. ``edit`` changes a whole
    answer before it is sent.
    """

    def __init__(self, model, *, name="tiny", max_logprobs=10**6, faults=(), edit=None, key=None):
        self.model, self.name, self.max_logprobs = model, name, max_logprobs
        self.faults, self.edit, self.key = list(faults), edit, key
        self.requests, self.most_at_once, self.num_connections = [], 0, 0
        self._now, self._lock = 0, threading.Lock()
        # A model's forward pass is not made for several threads.
        self._model_lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                server.num_connections += 1
                super().setup()

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply(200, {"data": [{"id": server.name}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._busy(body):
                    if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                        return self.reply(401, {"error": {"message": "Unauthorized"}})
                    with server._lock:
                        fault = server.faults.pop(0) if server.faults else None
                    if isinstance(fault, int):
                        return self.reply(fault, {"error": {"message": "try later"}})
                    if isinstance(fault, tuple):
                        return self.reply(fault[0], {"error": {"message": "try later"}}, fault[1])
                    if isinstance(fault, str):
                        return self.reply(200, fault)
                    if isinstance(fault, float):
                        time.sleep(fault)
                    return self.reply(*server.answer(body))

            def reply(self, status, content, headers=()):
                text = content if isinstance(content, str) else json.dumps(content)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    for name, value in dict(headers).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def _busy(self, body):
        with self._lock:
            self.requests.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, body):
        k = body.get("prompt_logprobs")
        if body["model"] != self.name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if k > self.max_logprobs:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: "
            return 400, {"error": {"message": message + str(self.max_logprobs)}}
        if body.get("max_tokens") == 0:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        choice = {"index": 0, "text": "", "prompt_logprobs": self.prompt_logprobs(body, k)}
        answer = {"object": "text_completion", "choices": [choice]}
        return 200, self.edit(answer) if self.edit else answer

    @torch.no_grad()
    def prompt_logprobs(self, body, k):
        ids = body["prompt"]
        with self._model_lock:
            log_probs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        best = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1).indices.tolist()
        entries = [None]
        for t in range(1, len(ids)):
            row = log_probs[t - 1]
            # The prompt's own token stands first, with its own rank.
            ranked = [(ids[t], int((row > row[ids[t]]).sum()) + 1)]
            ranked += [(token, rank) for rank, token in enumerate(best[t - 1], 1)]
            entries.append(
                {
                    str(token): {
                        "logprob": max(row[token].item(), -9999.0),
                        "rank": rank,
                        "decoded_token": chr(97 + token % 26),
                    }
                    for token, rank in ranked
                    if not math.isnan(row[token].item())
                }
            )
        return entries
