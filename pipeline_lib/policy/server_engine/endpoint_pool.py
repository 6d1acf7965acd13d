"""Many endpoints behind one queue of answers: the least busy one gets a request, and a lost one's go elsewhere.

One idea: a request is a coroutine that outlives endpoints. It asks one after the other until it is answered, so a
request can neither be lost with its endpoint nor be answered twice. An endpoint that was lost is asked again, sooner
at first and then less often; it gets requests only after it has the adapter again and answers with it.

All of this runs in one thread of its own; whoever submits and polls shares nothing with it but the queue.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy.adapters import StaleWeightsError
from pipeline_lib.policy.server_engine.endpoint import Completion, Endpoint, EndpointLost, RequestRefused, Target

LOGGER = logging.getLogger("coppice.progress")
CONNECT_S = 10.0
KEEP_ALIVE_S = 2.0  # shorter than vLLM's 5: a connection that is closed as it is used looks like a dead server
BUSY_S = 1.0  # a server that asks for patience is left alone that long
T = TypeVar("T")
Outcome = Completion | RequestRefused


class EndpointsDownError(RuntimeError):
    """No endpoint has answered for as long as the run is patient; the message is one line and says what to do."""


class EndpointPool:
    """Endpoints that all serve the same weights.

    Args:
        config: the group `server`, where they are and how patient to be.
        api_key: sent to every endpoint and told nobody; None sends none.

    Attributes:
        finished: `(key, outcome)` of each request, or the exception that ends all of them.
    """

    def __init__(self, config: PolicyConfig, api_key: str | None = None) -> None:
        self.finished: queue.SimpleQueue[tuple[str, Outcome] | Exception] = queue.SimpleQueue()
        self._config = config.server
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(config.server.timeout_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
        )
        self._endpoints = [Endpoint(url, self._client) for url in config.server.urls]
        self._target: Target | None = None
        self._some_ready = asyncio.Event()
        self._recoveries: dict[str, asyncio.Task[None]] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="policy.server", daemon=True)
        self._thread.start()

    def use(self, target: Target) -> None:
        """Makes the endpoints serve `target`; those that do not answer follow when they do. Nothing may be running.

        Raises:
            ConfigError: one of them serves something else, or none answers at the start.
            EndpointsDownError: none answers any more.
            StaleWeightsError: one of them answers as with other weights.
        """
        self._await(self._use(target))

    def start(self, key: str, body: dict[str, Any]) -> None:
        """Sends a request to whichever endpoint has the fewest; its outcome will be in `finished`."""
        self._loop.call_soon_threadsafe(self._spawn, key, body)

    def close(self) -> None:
        """Forgets all requests and ends the thread."""
        if self._loop.is_closed():
            return
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _spawn(self, key: str, body: dict[str, Any]) -> None:
        task = self._loop.create_task(self._run(key, body))
        self._requests.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._requests.discard)

    async def _use(self, target: Target) -> None:
        is_first, self._target = self._target is None, target
        await _cancel(list(self._recoveries.values()))
        self._recoveries.clear()
        self._some_ready.clear()
        for endpoint in self._endpoints:
            endpoint.is_ready = False
        found = await asyncio.gather(*(e.prepare(target) for e in self._endpoints), return_exceptions=True)
        for endpoint, error in zip(self._endpoints, found, strict=True):
            if isinstance(error, EndpointLost):
                self._lose(endpoint, error)
            elif error is not None:
                raise error
            else:
                self._admit(endpoint)
        if not any(endpoint.is_ready for endpoint in self._endpoints):
            if is_first:  # an address with a slip in it is not worth waiting for
                raise ConfigError(f"policy.server.urls: {self._troubles()}; start `vllm serve` there, then run again")
            await self._wait_for_one()

    async def _run(self, key: str, body: dict[str, Any]) -> None:
        """One request from its start to its outcome."""
        try:
            self.finished.put((key, await self._outcome(body)))
        except Exception as error:
            self.finished.put(error)

    async def _outcome(self, body: dict[str, Any]) -> Outcome:
        num_losses = 0
        while num_losses <= self._config.retries:
            endpoint = await self._least_busy()
            endpoint.in_flight += 1
            try:
                return await endpoint.complete(body)
            except RequestRefused as refusal:
                return refusal
            except EndpointLost as error:
                self._lose(endpoint, error)
                num_losses += not error.is_busy
            finally:
                endpoint.in_flight -= 1
        return RequestRefused(f"{num_losses} endpoints were lost with it")

    async def _least_busy(self) -> Endpoint:
        while not any(endpoint.is_ready for endpoint in self._endpoints):
            await self._wait_for_one()
        return min((e for e in self._endpoints if e.is_ready), key=lambda endpoint: endpoint.in_flight)

    async def _wait_for_one(self) -> None:
        try:
            await asyncio.wait_for(self._some_ready.wait(), self._config.patience_s)
        except TimeoutError:
            raise EndpointsDownError(
                f"policy.server: no endpoint has answered for {self._config.patience_s:g} s ({self._troubles()}); "
                "start one again, then run again: what is finished is kept"
            ) from None

    def _admit(self, endpoint: Endpoint) -> None:
        endpoint.is_ready, endpoint.trouble = True, ""
        self._some_ready.set()

    def _lose(self, endpoint: Endpoint, error: EndpointLost) -> None:
        """Takes an endpoint out until it answers again; of many requests lost with it the first one does."""
        if endpoint.url in self._recoveries:
            return
        endpoint.is_ready, endpoint.trouble = False, str(error)
        if not any(other.is_ready for other in self._endpoints):
            self._some_ready.clear()
        LOGGER.warning(f"policy.server: {endpoint.url} is lost ({error}); its requests go elsewhere")
        task = self._loop.create_task(self._recover(endpoint, BUSY_S if error.is_busy else 0.0))
        self._recoveries[endpoint.url] = task

    async def _recover(self, endpoint: Endpoint, delay: float) -> None:
        """Asks a lost endpoint again and again, until it serves what all serve."""
        assert self._target is not None
        while not endpoint.is_ready:
            await asyncio.sleep(delay)
            delay = min(max(2 * delay, BUSY_S), self._config.recheck_s)
            try:
                await endpoint.prepare(self._target)
            except (EndpointLost, ConfigError, StaleWeightsError) as error:
                endpoint.trouble = str(error)
            else:
                self._admit(endpoint)
        del self._recoveries[endpoint.url]
        LOGGER.warning(f"policy.server: {endpoint.url} is back")

    def _troubles(self) -> str:
        return "; ".join(f"{endpoint.url}: {endpoint.trouble}" for endpoint in self._endpoints)

    async def _close(self) -> None:
        await _cancel([*self._requests, *self._recoveries.values()])
        await self._client.aclose()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
