"""What makes a function a stage: a store entry that is its truth, and a Prefect task that shows it.

One idea: a stage's result is a pure function of its spec, its upstream references and its version;
together they are the store key. A rerun, from the terminal or from the UI, executes again just what the
store does not hold; what it holds ends at once, in the state Cached. Prefect's own cache is left out: it never
checks that what a cached result points to still exists, and its files can be lost or torn on their own.
An entry that was damaged since it was made is no result: it is moved aside and made again.

Keys, and what the store has, are known without Prefect: it is loaded when a stage is first run.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from pipeline_lib.config import Settings
from pipeline_lib.store import Entry, Store, read_json, write_json
from pipeline_lib.store.disk import explain_disk_full
from pipeline_lib.store.patience import doubling_delays
from pipeline_lib.store.refresh import Refresh
from pipeline_lib.types import IterationRecord, Ref
from tasks.orchestration.context import flow_context

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

    from tasks.orchestration.stage_task import StageTask

P = ParamSpec("P")
R = TypeVar("R")

LOGGER = logging.getLogger("coppice.progress")
STAGE_SECONDS = "stage_seconds"
FIGURES = "figures.json"
SETTINGS_PREFIXES = ("COPPICE_", "RAY_", "MLFLOW_")  # of the variables that `Settings` reads


def open_store() -> Store:
    """The store of ``COPPICE_STORE``, below ``COPPICE_HOME`` where that is not set."""
    settings = _settings()
    if settings.object_store is None:
        return Store(settings.store_root)
    from pipeline_lib.store.shared import SharedStore

    return SharedStore(settings.store_root, settings.object_store, patience_s=settings.store_patience_s)


def seconds_of(ref: Ref) -> float:
    """How long the stage behind a reference worked, of one killed its last process; nan where that was lost."""
    return float(open_store().observations(ref).get(STAGE_SECONDS, math.nan))


def figures_of(ref: Ref) -> dict[str, float]:
    """What the stage behind a reference found and what it measured, by name; version 0.1.0 kept both as the latter."""
    store = open_store()
    path = store.open(ref) / FIGURES
    figures = read_json(path) if path.is_file() else {}
    return {name: float(value) for name, value in {**store.observations(ref), **figures}.items()}


@dataclass(frozen=True, slots=True)
class Done:
    """What a stage's function returns once its files are written; the rest of the entry is the recipe's.

    Args:
        num_rows: how many problems, trees, updates or records it made.
        observations: what it measured besides and what differs from run to run, by name, as JSON; outside the entry's
            digest.
        figures: numbers that are part of its result, by name; they become ``figures.json``.
    """

    num_rows: int
    observations: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


class NotInStoreError(LookupError):
    """What a plan ends with: the store lacks what the next stage makes."""


Look = Callable[["Stage[..., Any]", Mapping[str, Any]], Any]


@dataclass(slots=True)
class _Mode:
    """What calls of stages do besides what they always do, in this process.

    Args:
        look: answers calls of stages in place of any work; None where the work is done.
        refresh: what is made again though it is there.
    """

    look: Look | None = None
    refresh: Refresh | None = None


_mode = _Mode()


@contextmanager
def looking_only(look: Look) -> Iterator[None]:
    """In the block no stage works.

    Args:
        look: from a stage and its arguments to what the call returns; raises where there is nothing to go on with.
    """
    _mode.look = look
    try:
        yield
    finally:
        _mode.look = None


def is_looking_only() -> bool:
    """Whether `looking_only` is at work."""
    return _mode.look is not None


@contextmanager
def refreshing(refresh: Refresh | None) -> Iterator[None]:
    """In the block the results that `refresh` wants are made again; None wants none."""
    _mode.refresh = refresh
    try:
        yield
    finally:
        _mode.refresh = None
    if refresh is not None:
        refresh.end()


def refresh_id() -> str | None:
    """What tells a run that makes results again from those before it; None for any other run."""
    return None if _mode.refresh is None else _mode.refresh.id


def _is_wanted_anew(entry: Entry) -> bool:
    return _mode.refresh is not None and _mode.refresh.wants(entry.uri)


class Stage(Generic[P, R]):
    """A stage as it is called from a flow: ``ref = stage(config=..., problems=ref)``; keywords only."""

    def __init__(
        self,
        body: Callable[Concatenate[Entry, P], Done],
        spec: Callable[..., Mapping[str, Any]],
        *,
        version: int,
        run_name: str,
        result: Callable[[Entry], R],
        still_holds: Callable[..., bool],
        transient: tuple[type[Exception], ...],
    ) -> None:
        self.name = getattr(body, "__name__").replace("_", "-")  # noqa: B009 - Callable has no __name__ for mypy
        self.__module__ = body.__module__
        self._body: Callable[..., Done] = body
        self._spec, self._version, self._run_name = spec, version, run_name
        self._result, self._still_holds, self._transient = result, still_holds, transient

    @cached_property
    def _task(self) -> StageTask:
        """Prefect's task, made when the stage is first run."""
        from tasks.orchestration.stage_task import make_task

        return make_task(
            self._find_or_make, self._body, name=self.name, run_name=self._run_name, transient=self._transient
        )

    def entry(self, **arguments: Any) -> Entry:
        """Where the stage's result lies, or will lie, for these arguments."""
        with self._naming_full_disk():
            return open_store().entry(self.name, *self._material(arguments), version=self._version)

    def uri(self, **arguments: Any) -> str:
        """Where the result lies, or would lie, below the store, for these arguments; looks for nothing there."""
        return open_store().uri(self.name, *self._material(arguments), version=self._version)

    def label(self, arguments: Mapping[str, Any]) -> str:
        """What people call the stage with these arguments: the task run's name."""
        return self._run_name.format(**arguments)

    def find(self, *, version: int | None = None, **arguments: Any) -> Ref | None:
        """What the store has for these arguments, or had from an earlier version of the stage; None where nothing."""
        wanted = self._version if version is None else version
        entry = open_store().find(self.name, *self._material(arguments), version=wanted)
        if entry is None or _is_wanted_anew(entry) or not self._still_holds(entry, **arguments):
            return None
        return entry.ref()

    def _material(self, arguments: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Ref]]:
        """What of the arguments names the entry: the spec, and all references among them."""
        return self._spec(**arguments), _refs(tuple(arguments.values()))

    def __call__(self, *args: P.args, **arguments: P.kwargs) -> R:
        """Runs the stage, or finds what it made before; returns its result, a reference for most."""
        if _mode.look is not None:
            answer: R = _mode.look(self, arguments)
            return answer
        self._with_retries()(**arguments)
        return self.result(**arguments)

    def result(self, **arguments: Any) -> R:
        """What a call returns of the complete entry of these arguments."""
        entry = self.entry(**arguments)
        entry.fetch()
        return self._result(entry)

    def submit(self, runner: TaskRunner[Any], **arguments: Any) -> PrefectFuture[Any]:
        """Hands the stage to a task runner; once it is done, the result is the entry's."""
        future: PrefectFuture[Any] = runner.submit(self._with_retries(), parameters=arguments)
        return future

    def __reduce__(self) -> str:
        """By name, as modules travel to another process: the code there is this code."""
        return self._body.__name__

    def _is_done(self, entry: Entry, arguments: Mapping[str, Any]) -> bool:
        return entry.is_whole() and self._still_holds(entry, **arguments)

    def _with_retries(self) -> StageTask:
        """The task, tried again after an error that passes by itself: an outage shall not end a run of days."""
        delays: list[float] = doubling_delays(_settings().tracking_patience_s) if self._transient else []
        if not delays:
            return self._task
        patient: StageTask = self._task.with_options(retries=len(delays), retry_delay_seconds=delays)
        return patient

    def _find_or_make(self, arguments: dict[str, Any]) -> tuple[str, Ref | None]:
        """The entry's URI, and its reference once the body has filled it; None where it was there before."""
        entry = self.entry(**arguments)
        if self._is_done(entry, arguments) and not _is_wanted_anew(entry):
            return entry.uri, None
        waiting = entry.lock(_settings().lock_wait_s, owner=_this_run(), on_wait=self._say_for_whom)
        with self._naming_full_disk(), waiting:
            entry.set_aside_damage()
            if _is_wanted_anew(entry):
                self._make_again(entry, arguments)
            elif not self._is_done(entry, arguments):  # another process may have made it meanwhile
                self._fill(entry, arguments)
        return entry.uri, entry.ref()

    def _fill(self, entry: Entry, arguments: Mapping[str, Any]) -> None:
        """Runs the body and commits what it wrote, with the seconds that it took."""
        started = time.perf_counter()
        done = self._body(entry, **arguments)
        if done.figures:
            write_json(entry.path / FIGURES, done.figures)
        entry.commit(done.num_rows, {STAGE_SECONDS: time.perf_counter() - started, **done.observations})

    def _make_again(self, entry: Entry, arguments: Mapping[str, Any]) -> None:
        """Makes the result beside the one that is there, which goes once the new one is complete and is another."""
        assert _mode.refresh is not None
        draft = entry.draft()
        if not draft.is_complete():
            self._fill(draft, arguments)
        differs = entry.replace_by(draft)
        LOGGER.info(f"{self.label(arguments)}: made again, {'other bytes' if differs else 'the same bytes'}")
        _mode.refresh.has_made(entry.uri)

    def _say_for_whom(self, holder: str) -> None:
        LOGGER.info(f"{self.name}: waits for {holder}, which makes the same")

    def _naming_full_disk(self) -> Any:
        return explain_disk_full(open_store().root, self.name)


@overload
def stage(
    spec: Callable[..., Mapping[str, Any]],
    *,
    run_name: str,
    version: int = ...,
    still_holds: Callable[..., bool] = ...,
    transient: tuple[type[Exception], ...] = ...,
) -> Callable[[Callable[Concatenate[Entry, P], Done]], Stage[P, Ref]]: ...
@overload
def stage(
    spec: Callable[..., Mapping[str, Any]],
    *,
    run_name: str,
    version: int = ...,
    result: Callable[[Entry], R],
    still_holds: Callable[..., bool] = ...,
    transient: tuple[type[Exception], ...] = ...,
) -> Callable[[Callable[Concatenate[Entry, P], Done]], Stage[P, R]]: ...
def stage(
    spec: Callable[..., Mapping[str, Any]],
    *,
    run_name: str,
    version: int = 1,
    result: Callable[[Entry], Any] = Entry.ref,
    still_holds: Callable[..., bool] = lambda entry, **_: True,
    transient: tuple[type[Exception], ...] = (),
) -> Callable[[Callable[Concatenate[Entry, P], Done]], Stage[P, Any]]:
    """Makes a stage of a function that writes files into a store entry; the stage measures and commits it.

    Args:
        spec: from the stage's arguments to all, besides upstream references, that its result depends on.
        run_name: the task run's name in the UI, a template over the arguments.
        version: raise it when the stage's code changes its result.
        result: what a call returns of the complete entry; its reference if left out.
        still_holds: from a complete entry and the arguments to whether what the stage did outside the store is there.
        transient: errors that pass by themselves; after one the stage is tried again while ``tracking_patience_s``
            lasts.
    """

    def decorate(body: Callable[Concatenate[Entry, P], Done]) -> Stage[P, Any]:
        return Stage(
            body,
            spec,
            version=version,
            run_name=run_name,
            result=result,
            still_holds=still_holds,
            transient=transient,
        )

    return decorate


def stage_refs(record: IterationRecord, stage: str) -> list[Ref]:
    """A stage's reference, or those of its shards; none where it did not run."""
    return [ref for name, ref in record.refs.items() if name.partition("/")[0] == stage]


def _settings() -> Settings:
    """What the environment says now; a run asks hundreds of times, so it is read anew only when it has changed."""
    named = ((name, value) for name, value in os.environ.items() if name.upper().startswith(SETTINGS_PREFIXES))
    return _settings_of(tuple(sorted(named)))


@lru_cache(maxsize=1)
def _settings_of(_environment: tuple[tuple[str, str], ...]) -> Settings:
    return Settings()


def _this_run() -> str:
    """How other runs call this one while they wait for it."""
    context = flow_context()
    run = context.flow_run.name if context is not None and context.flow_run is not None else "another run"
    return f"{run} (process {os.getpid()} on {socket.gethostname()})"


def _refs(value: Any) -> list[Ref]:
    """References among an argument's values, in order."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in _refs(item)]
    return []
