"""One endpoint of `vllm serve`: what it serves, the adapters it is given, and completions by token ids.

Whatever goes wrong is one of three things, and each has its class. The endpoint is lost, and another one may serve the
request (`EndpointLost`); the request is refused, by whomever (`RequestRefused`); or a person must put something right
(`ConfigError`). No text of theirs holds the API key.

Besides OpenAI's completions this needs three things of vLLM's own: ``return_token_ids``, ``prompt_logprobs`` and
``/v1/load_lora_adapter``.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from pipeline_lib.config import ConfigError
from pipeline_lib.config.one_line import one_line
from pipeline_lib.policy.adapters import ProbeAnswers, Weights

PASSING_STATUS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
BUSY_STATUS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
KEY_STATUS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
UNFINISHED = ("abort", "error")  # how vLLM ends what it runs when it is stopped
NEUTRAL = {  # a server takes these from the model's generation_config.json where a request is silent
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
MESSAGE_CHARS = 300


class EndpointLost(Exception):
    """No answer, or not one of a server in good health. `is_busy`: it asked for patience, and nothing was tried."""

    def __init__(self, reason: str, *, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.is_busy = is_busy


class RequestRefused(Exception):
    """A request that no endpoint will take."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled for one request.

    Args:
        token_ids: as sampled, a token that ended the answer included.
        finish_reason: vLLM's own word.
        num_cached: prompt tokens that were not computed; 0 where the server does not tell.
        stop_reason: the id of the token that ended the answer, or whatever else the server says did.
        logprobs: one for each of `token_ids`, where the request asks for them.
    """

    token_ids: list[int]
    finish_reason: str
    num_cached: int
    stop_reason: object = None
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What an endpoint must serve before it gets requests.

    Args:
        weights: the base, and the adapter on it or None.
        base_digest, digest: of the base, and of both together; equal where the adapter changes nothing.
        base_name: the base's name on the server; None takes the only one.
        context: prompt and answer together, in tokens.
        text, text_ids: a text, and its tokens by the policy's own tokenizer.
        probe_ids: a prompt whose log-probabilities tell weights apart.
    """

    weights: Weights
    base_digest: str
    digest: str
    base_name: str | None
    context: int
    text: str
    text_ids: list[int]
    probe_ids: list[int]

    @property
    def adapter_name(self) -> str | None:
        """The adapter's name on every server: named by its content, it never stands for other weights."""
        return None if self.digest == self.base_digest else f"coppice-{self.digest}"


class Endpoint:
    """One server.

    Args:
        url: without ``/v1``.
        client: sends the API key, and knows how long to wait.
    """

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.is_ready = False
        self.in_flight = 0
        self.trouble = ""
        self._client = client
        self._answers = ProbeAnswers()
        self._model = ""

    async def prepare(self, target: Target) -> None:
        """Makes the endpoint serve `target`, and asks whether it does.

        Raises:
            EndpointLost: it does not answer.
            ConfigError: it serves something else, or cannot load the adapter.
            StaleWeightsError: it has the adapter, and answers as with other weights.
        """
        try:
            cards = (await self._ask("GET", "/v1/models"))["data"]
            model = base = self._base_name(cards, target)
            await self._check_tokenizer(base, target)
            self._answers.check(await self._probe(base, target), target.base_digest, self.url, target.weights.model_dir)
            if target.adapter_name is not None:
                await self._load_adapter(target, is_known=any(c["id"] == target.adapter_name for c in cards))
                answer = await self._probe(target.adapter_name, target)
                self._answers.check(answer, target.digest, self.url, target.weights.adapter_dir)
                model = target.adapter_name
        except RequestRefused as error:
            raise ConfigError(f"policy.server: {self.url} does not take Coppice's requests: {error}") from error
        except (KeyError, TypeError, IndexError) as error:
            raise ConfigError(f"policy.server: {self.url} does not answer as vLLM's server does") from error
        self._model = model

    async def complete(self, body: dict[str, Any]) -> Completion:
        """Samples one request.

        Raises:
            EndpointLost: ask another one.
            RequestRefused: there is no use in that.
            ConfigError: the API key is refused, or log-probabilities are asked for and none come.
        """
        try:
            answer = await self._ask("POST", "/v1/completions", {**NEUTRAL, **body, "model": self._model})
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            token_ids, finish_reason = [int(i) for i in choice["token_ids"]], str(choice["finish_reason"])
        except (KeyError, TypeError, IndexError) as error:
            raise EndpointLost("answers without token ids") from error
        if finish_reason in UNFINISHED:
            raise EndpointLost("ended what it was running")
        details = usage.get("prompt_tokens_details") or {}
        num_cached = int(details.get("cached_tokens") or 0)
        logprobs = self._logprobs(choice, len(token_ids)) if "logprobs" in body else None
        return Completion(token_ids, finish_reason, num_cached, choice.get("stop_reason"), logprobs)

    def _logprobs(self, choice: dict[str, Any], count: int) -> list[float]:
        """Those of `count` sampled tokens, in the form of OpenAI's completions; vLLM's own default is the raw ones."""
        values = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(values) != count or None in values:
            raise ConfigError(
                f"policy.server: {self.url} gives no log-probabilities, which search.selection=entropy needs; "
                "let `vllm serve` itself answer there, or choose another selection"
            )
        return [float(value) for value in values]

    def _base_name(self, cards: list[dict[str, Any]], target: Target) -> str:
        """The base's name on this server; adapters name a parent, and a base may have several names."""
        bases = [card for card in cards if card.get("parent") is None]
        names = ", ".join(str(card["id"]) for card in bases) or "nothing"
        if target.base_name is not None:
            bases = [card for card in bases if card["id"] == target.base_name]
            if not bases:
                raise ConfigError(f"policy.server.model_name={target.base_name}: {self.url} serves {names}")
        if len({card.get("root") or card["id"] for card in bases}) != 1:
            raise ConfigError(f"policy.server: {self.url} serves {names}; name one by policy.server.model_name")
        limit = bases[0].get("max_model_len")
        if limit is not None and limit < target.context:
            raise ConfigError(
                f"policy.max_context_tokens={target.context}: {self.url} has room for {limit}; "
                f"start it with --max-model-len {target.context}, or lower the setting"
            )
        return str(bases[0]["id"])

    async def _check_tokenizer(self, base: str, target: Target) -> None:
        body = {"model": base, "prompt": target.text, "max_tokens": 1, "add_special_tokens": False}
        try:
            choice = (await self._ask("POST", "/v1/completions", {**body, "return_token_ids": True}))["choices"][0]
        except RequestRefused:  # a server without a tokenizer of its own is as good
            return
        if choice.get("token_ids") is None:
            raise ConfigError(f"policy.server: {self.url} returns no token ids; it must be vLLM, 0.10.2 or newer")
        if choice["prompt_token_ids"] != target.text_ids:
            raise ConfigError(f"policy.server: {self.url} serves another model than policy.model: its tokens differ")

    async def _probe(self, model: str, target: Target) -> bytes:
        """Log-probabilities of fixed tokens, computed without the cache: with no company, equal weights, equal bits."""
        ids = target.probe_ids
        body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        rows = (await self._ask("POST", "/v1/completions", body))["choices"][0]["prompt_logprobs"][1:]
        return repr([row[str(token)]["logprob"] for row, token in zip(rows, ids[1:], strict=True)]).encode()

    async def _load_adapter(self, target: Target, *, is_known: bool) -> None:
        """Loads the adapter; a server that has it may have it from a folder that is gone."""
        path = str(target.weights.adapter_dir)
        body = {"lora_name": target.adapter_name, "lora_path": path, "load_inplace": is_known}
        response = await self._send("POST", "/v1/load_lora_adapter", body)
        if response.is_success:
            return
        message = self._message(response)
        if response.status_code == HTTPStatus.NOT_FOUND and message.lower() == "not found":
            message = "it has no /v1/load_lora_adapter; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 --enable-lora"
        elif response.is_server_error and not (await self._send("GET", "/health")).is_success:
            raise EndpointLost(message)
        raise ConfigError(f"policy.server: {self.url} cannot load the adapter {path}: {message}")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request that must succeed; see the class for what is raised otherwise."""
        response = await self._send(method, path, body)
        status, message = response.status_code, self._message(response)
        if status == HTTPStatus.NOT_FOUND:  # it was started again, and has lost the adapter or serves another model
            raise EndpointLost(message)
        if response.is_client_error and status not in PASSING_STATUS:
            raise RequestRefused(message)
        if not response.is_success:
            raise EndpointLost(message, is_busy=status in BUSY_STATUS)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise EndpointLost("answers with something else than JSON") from error
        return answer

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = await self._client.request(method, self.url + path, json=body)
        except httpx.TransportError as error:
            raise EndpointLost(one_line(str(error), max_chars=MESSAGE_CHARS) or type(error).__name__) from error
        if response.status_code in KEY_STATUS:
            raise ConfigError(f"policy.server: {self.url} refuses the API key; it is read from COPPICE_SERVER_API_KEY")
        return response

    def _message(self, response: httpx.Response) -> str:
        """What a server says about a failure, in one line, without the key; vLLM's, OpenAI's and starlette's forms."""
        if response.is_success:
            return ""
        try:
            body = response.json()
            error = body.get("error", body.get("detail", body))
            text = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, AttributeError):
            text = response.text
        key = self._client.headers.get("Authorization", "").removeprefix("Bearer ")
        text = text.replace(key, "…") if key else text
        return one_line(text, max_chars=MESSAGE_CHARS) or f"status {response.status_code}"
