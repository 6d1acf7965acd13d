"""The flow run and the task run that code is called in, asked without loading Prefect.

Where nobody has loaded it there is neither: a notebook, a plan of a run, one of which nothing is left to do.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.context import FlowRunContext, TaskRunContext

CONTEXT = "prefect.context"


def flow_context() -> FlowRunContext | None:
    """The flow run's context; None outside a flow."""
    if CONTEXT not in sys.modules:
        return None
    from prefect.context import FlowRunContext

    return FlowRunContext.get()


def task_context() -> TaskRunContext | None:
    """The task run's context; None outside a task."""
    if CONTEXT not in sys.modules:
        return None
    from prefect.context import TaskRunContext

    return TaskRunContext.get()
