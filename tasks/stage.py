"""What makes a function a stage: a store entry that is its truth, and a Prefect task that shows it.

One idea: a stage's result is a pure function of its spec, its upstream references and its version;
together they are the store key, and the store key is Prefect's cache key. A rerun from the UI
executes again just what the store does not hold: Prefect itself never checks that what a cached
result points to still exists, so ``refresh_cache`` is set from the store at every call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec

from prefect import task
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from pipeline_lib.config import Settings
from pipeline_lib.store import Entry, Store
from pipeline_lib.types import Ref

P = ParamSpec("P")


def open_store() -> Store:
    """The store below ``COPPICE_HOME``."""
    return Store(Settings().store_root)


class Stage(Generic[P]):
    """A stage as it is called from a flow: ``ref = stage(config=..., problems=ref)``; keywords only."""

    def __init__(
        self,
        body: Callable[Concatenate[Entry, P], None],
        spec: Callable[..., Mapping[str, Any]],
        version: int,
        run_name: str,
    ) -> None:
        self.name = getattr(body, "__name__").replace("_", "-")  # noqa: B009 - Callable has no __name__ for mypy
        self.__module__ = body.__module__
        self._body, self._spec, self._version = body, spec, version
        self._task = task(
            self._guarded(),
            name=self.name,
            task_run_name=run_name,
            cache_key_fn=self._cache_key,
            persist_result=True,
            result_serializer="json",
        )

    def entry(self, **arguments: Any) -> Entry:
        """Where the stage's result lies, or will lie, for these arguments."""
        inputs = [ref for value in arguments.values() for ref in _refs(value)]
        return open_store().entry(self.name, self._spec(**arguments), inputs, version=self._version)

    def __call__(self, *args: P.args, **arguments: P.kwargs) -> Ref:
        """Runs the stage, or returns the reference of what it made before."""
        fresh = not self.entry(**arguments).is_complete()
        self._task.with_options(refresh_cache=fresh)(**arguments)
        return self.entry(**arguments).ref()  # what Prefect cached may be of an entry that was removed since

    def submit(self, runner: TaskRunner[Any], **arguments: Any) -> PrefectFuture[Any]:
        """Hands the stage to a task runner; once it is done, the result is the entry's."""
        fresh = not self.entry(**arguments).is_complete()
        return runner.submit(self._task.with_options(refresh_cache=fresh), parameters=arguments)

    def __reduce__(self) -> str:
        """By name, as modules travel to another process: the code there is this code."""
        return self._body.__name__

    def _cache_key(self, context: TaskRunContext, arguments: dict[str, Any]) -> str:
        return f"{self.name}-{self.entry(**arguments).path.name}"

    def _guarded(self) -> Callable[..., dict[str, Any]]:
        """The task's function: the body without its first parameter, skipped when the store is complete."""

        def run(**arguments: Any) -> dict[str, Any]:
            entry = self.entry(**arguments)
            with entry.lock(Settings().lock_wait_s):
                if not entry.is_complete():
                    self._body(entry, **arguments)
            return entry.ref().model_dump()

        parameters = list(inspect.signature(self._body).parameters.values())[1:]
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Any) for p in parameters]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = self.name.replace("-", "_"), self._body.__doc__
        return run


def stage(
    spec: Callable[..., Mapping[str, Any]],
    *,
    version: int = 1,
    run_name: str,
) -> Callable[[Callable[Concatenate[Entry, P], None]], Stage[P]]:
    """Makes a stage of a function that fills a store entry and commits it.

    Args:
        spec: from the stage's arguments to all, besides upstream references, that its result depends on.
        version: raise it when the stage's code changes its result.
        run_name: the task run's name in the UI, a template over the arguments.
    """

    def decorate(body: Callable[Concatenate[Entry, P], None]) -> Stage[P]:
        return Stage(body, spec, version, run_name)

    return decorate


def _refs(value: Any) -> list[Ref]:
    """References among an argument's values, in order."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in _refs(item)]
    return []
