"""A stage as a task of Prefect's: its name, its retries, and the state Cached for what the store has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed

from pipeline_lib.types import Ref

StageTask = Task[..., dict[str, Any] | State[Any]]
Work = Callable[[dict[str, Any]], tuple[str, Ref | None]]


def make_task(
    work: Work, body: Callable[..., Any], *, name: str, run_name: str, transient: tuple[type[Exception], ...]
) -> StageTask:
    """The task of a stage.

    Args:
        work: from the stage's arguments to the entry's URI, and its reference where it was made; None where the store
            had it.
        body: the stage's function, whose documentation and parameters but the first the task has, too.
        name: the stage's.
        run_name: the task run's, a template over the arguments.
        transient: errors after which another attempt makes sense.
    """

    def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
        return isinstance(state.data, transient)

    made: StageTask = task(
        name=name,
        task_run_name=run_name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retry_condition_fn=is_transient,
    )(_function(work, body, name))
    return made


def _function(work: Work, body: Callable[..., Any], name: str) -> Callable[..., dict[str, Any] | State[Any]]:
    """The body without its first parameter, skipped when the store is complete."""

    def run(**arguments: Any) -> dict[str, Any] | State[Any]:
        uri, made = work(arguments)
        if made is None:
            return Completed(name="Cached", message=f"{uri} is in the store")
        return made.model_dump()

    parameters = list(inspect.signature(body).parameters.values())[1:]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Any) for p in parameters]
    run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]  # inspect reads it
    run.__name__, run.__doc__ = name.replace("-", "_"), body.__doc__
    return run
