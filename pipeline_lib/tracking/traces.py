"""Traces on a tracking server, written so that writing twice equals writing once.

One idea: a trace's id is made of the run's and the problem's id, so a second writing finds what the first one wrote.
All spans travel in one request. Which trees become traces, and of what, is in `tree_traces`; MLflow's modules are
handed in, as in `tracked_run`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline_lib.tracking.tree_traces import TraceSpan, TreeTrace
from pipeline_lib.types import JsonDict

NS_PER_MS = 1_000_000


def log_traces(
    tracing: Any, entities: Any, traces: Sequence[TreeTrace], *, experiment_id: str, run_id: str, begin_ms: int
) -> None:
    """Attaches to a run those of `traces` that it does not have yet.

    Args:
        tracing: an ``mlflow.tracing.client.TracingClient`` with its own tracking URI.
        entities: the module ``mlflow.entities``.
        traces: in the order in which MLflow's list, the latest first, shall show them.
        experiment_id: id of the experiment that the run lies in.
        run_id: id of the run whose Traces tab shows them.
        begin_ms: time of the first trace, milliseconds since 1970; each other one is a millisecond earlier.
    """
    found = tracing.search_traces(
        filter_string=f"request_metadata.`mlflow.sourceRun` = '{run_id}'",
        include_spans=False,
        locations=[experiment_id],
    )
    logged = {trace.info.trace_id for trace in found}
    begins = {trace.problem_id: begin_ms - place for place, trace in enumerate(traces)}
    fresh = [trace for trace in traces if f"tr-{_trace_id(run_id, trace)}" not in logged]
    spans = [_span(entities, trace, span, run_id, begins[trace.problem_id]) for trace in fresh for span in trace.spans]
    if spans:
        tracing.log_spans(experiment_id, spans)
    for trace in fresh:  # last, so that a trace that is found is complete
        tracing.start_trace(_info(entities, trace, experiment_id, run_id, begins[trace.problem_id]))


def _trace_id(run_id: str, trace: TreeTrace) -> str:
    return hashlib.sha256(f"{run_id}/{trace.problem_id}".encode()).hexdigest()[:32]


def _span(entities: Any, trace: TreeTrace, span: TraceSpan, run_id: str, begin_ms: int) -> Any:
    trace_id = _trace_id(run_id, trace)
    start = (begin_ms + span.start) * NS_PER_MS
    attributes: JsonDict = {
        "mlflow.traceRequestId": f"tr-{trace_id}",
        "mlflow.spanType": "TREE" if span.parent is None else "STEP",
        "mlflow.spanInputs": span.inputs,
        "mlflow.spanOutputs": span.outputs,
        "node": span.node,
        **span.outputs,
    }
    return entities.Span.from_dict(
        {
            "trace_id": base64.b64encode(bytes.fromhex(trace_id)).decode(),
            "span_id": _span_id(span.node),
            "parent_span_id": None if span.parent is None else _span_id(span.parent),
            "name": span.name,
            "start_time_unix_nano": start,
            "end_time_unix_nano": start + span.length * NS_PER_MS,
            "attributes": {name: json.dumps(value, ensure_ascii=False) for name, value in attributes.items()},
            "status": {"code": "STATUS_CODE_ERROR" if span.is_right is False else "STATUS_CODE_OK", "message": ""},
        }
    )


def _span_id(node: int) -> str:
    return base64.b64encode((node + 1).to_bytes(8, "big")).decode()  # 0 is no id


def _info(entities: Any, trace: TreeTrace, experiment_id: str, run_id: str, begin_ms: int) -> Any:
    return entities.TraceInfo(
        trace_id=f"tr-{_trace_id(run_id, trace)}",
        trace_location=entities.TraceLocation.from_experiment_id(experiment_id),
        request_time=begin_ms,
        execution_duration=trace.spans[0].length,
        state=entities.TraceState.OK,
        request_preview=trace.title,
        response_preview=trace.verdict,
        trace_metadata={"mlflow.sourceRun": run_id},
        tags={"mlflow.traceName": trace.problem_id, **trace.tags},
    )
