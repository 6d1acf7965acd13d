"""A small HTTP server that speaks what the server backend needs of vLLM's, and can die, hang, refuse and forget."""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transformers import AutoTokenizer

from pipeline_lib.config import PolicyConfig, ServerConfig
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.server_engine.server_policy import ServerPolicy
from pipeline_lib.policy.tokenizers import load_codec

BASE = "base"
Body = dict[str, Any]
Reply = tuple[int, Body]


def scripted_tokens(model: str, body: Body) -> list[int]:
    """One to eight tokens that depend on all that a sampled answer depends on, and on nothing else."""
    seed = f"{model} {body['prompt']} {body.get('seed')} {body['temperature']}".encode()
    count = min(body["max_tokens"], 1 + sum(seed) % 8)
    return [5 + (sum(seed) * (index + 3)) % 90 for index in range(count)]


class ScriptedEndpoint:
    """Answers by `scripted_tokens`, one thread per connection.

    Args:
        api_key: what every request must bring; None asks for nothing.
        delay_s: how long a completion takes.
        intercept: called with path and body before each answer; a reply of its own goes out instead.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        delay_s: float = 0.0,
        intercept: Callable[[str, Body], Reply | None] = lambda path, body: None,
        **card: Any,
    ) -> None:
        self.api_key, self.delay_s, self.intercept = api_key, delay_s, intercept
        self.card = {"id": BASE, "root": "folder", "parent": None, "max_model_len": 1024} | card
        self.adapters: dict[str, str] = {}
        self.asked: list[Body] = []  # the sampled requests, in order of arrival
        self.in_flight = self.most_in_flight = 0
        self._is_dead = threading.Event()
        self._lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, at the same port as before."""
        self._is_dead.clear()
        self._server = _Server(("127.0.0.1", self.port), partial(_Handler, self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def die(self) -> None:
        """Ends as a killed process does: nothing listens, open connections are cut, adapters are forgotten."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in list(self.connections):
                with suppress(OSError):  # it has just ended by itself
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()
        self._server = None
        self._is_dead.set()
        self.adapters.clear()

    def stop(self) -> None:
        if self._server is not None:
            self.die()

    def reply(self, path: str, body: Body, key: str | None) -> Reply:
        if self.api_key is not None and key != f"Bearer {self.api_key}":
            return 401, {"error": f"Unauthorized: {key}"}
        found = self.intercept(path, body)
        if found is not None:
            return found
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            cards = [{"id": name, "root": root, "parent": BASE} for name, root in self.adapters.items()]
            return 200, {"data": [self.card, *cards]}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, {}
        return self._complete(body)

    def _complete(self, body: Body) -> Reply:
        model = body["model"]
        if model not in (self.card["id"], *self.adapters):
            return 404, {"error": {"message": f"The model `{model}` does not exist.", "code": 404}}
        if "prompt_logprobs" in body:
            values = [
                {str(token): {"logprob": -float(zlib.crc32(f"{model} {token}".encode()))}} for token in body["prompt"]
            ]
            return 200, {"choices": [{"prompt_logprobs": [None, *values[1:]]}]}
        if isinstance(body["prompt"], str):
            ids = TOKENIZER.encode(body["prompt"], add_special_tokens=False)
            return 200, {"choices": [{"token_ids": [5], "prompt_token_ids": ids, "finish_reason": "length"}]}
        return self._sample(model, body)

    def _sample(self, model: str, body: Body) -> Reply:
        with self._lock:
            self.asked.append(body)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._is_dead.wait(self.delay_s)
        with self._lock:
            self.in_flight -= 1
        ids = scripted_tokens(model, body)
        ended = len(ids) < body["max_tokens"]
        choice: Body = {"token_ids": [*ids, END] if ended else ids, "finish_reason": "stop" if ended else "length"}
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": [-0.25 * index for index in range(len(choice["token_ids"]))]}
        return 200, {"choices": [choice], "usage": {"prompt_tokens_details": {"cached_tokens": 2}}}


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:  # a request cut short by `die`
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, owner: ScriptedEndpoint, *arguments: Any) -> None:
        self.owner = owner
        super().__init__(*arguments)

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: Body) -> None:
        status, answer = self.owner.reply(self.path, body, self.headers["Authorization"])
        content = json.dumps(answer).encode()
        with suppress(OSError):  # the endpoint died in between
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


TOKENIZER = AutoTokenizer.from_pretrained(TINY_BASE)
END = TOKENIZER.eos_token_id


def server_config(*urls: str, **options: Any) -> PolicyConfig:
    """The embedded base behind these endpoints."""
    server = ServerConfig(urls=urls, **{"recheck_s": 0.2, "patience_s": 20.0, **options})
    return PolicyConfig(backend="server", model="tiny", device="cpu", max_batch=16, server=server)


@contextmanager
def server_policy(config: PolicyConfig, **options: Any) -> Iterator[ServerPolicy]:
    """An open policy."""
    codec = load_codec(TINY_BASE, config)
    policy = ServerPolicy(TINY_BASE, policy_id="test", config=config, codec=codec, **options)
    try:
        yield policy
    finally:
        policy.close()
