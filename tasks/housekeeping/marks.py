"""Which entries of the store a run needs or made, told from what it put on record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.store.integrity import UNREADABLE, read_observations
from pipeline_lib.store.prune import StoredEntry
from pipeline_lib.tracking.history.past_runs import PastRun, run_config, run_records
from pipeline_lib.types import IterationRecord, Ref
from tasks.finish import RESULT, finish_run
from tasks.gate import decide_gate
from tasks.record import RECORD, record_iteration
from tasks.runtime.stage import stage_refs
from tasks.search import gather_trees, search_shard

RECORDED_BY = {record_iteration.name: RECORD, finish_run.name: RESULT}


def entries_of_run(settings: Settings, run: PastRun, recorders: Mapping[str, str]) -> set[str]:
    """URIs of the entries that a run's records name, and of those that led from one to the next.

    Args:
        settings: where MLflow is.
        run: one of the whole loop, or one that measured a policy only.
        recorders: what `recording_runs` found in the store.
    """
    records, config = run_records(settings, run), run_config(settings, run)
    found = {ref.uri for record in records for ref in _named_refs(record)} | run.datasets
    found |= {uri for uri, run_id in recorders.items() if run_id in run.run_ids}
    return found if config is None else found | set(_unnamed(config, records))


def recording_runs(entries: Sequence[StoredEntry]) -> dict[str, str]:
    """Entries that put something on record, by URI, with the MLflow run that they put it into."""
    runs = {entry.uri: _recorded_in(entry) for entry in entries if entry.path.parent.name in RECORDED_BY}
    return {uri: run_id for uri, run_id in runs.items() if run_id is not None}


def _recorded_in(entry: StoredEntry) -> str | None:
    try:
        observed = read_observations(Path(entry.path))
    except UNREADABLE:  # damaged: it is made again whoever needs it
        return None
    run_id = (observed.get(RECORDED_BY[entry.path.parent.name]) or {}).get("tracking_run")
    return None if run_id is None else str(run_id)


def _named_refs(record: IterationRecord) -> Iterator[Ref]:
    yield from record.refs.values()
    for report in record.evaluations:
        yield from (ref for ref in (report.problems, report.predictions) if ref is not None)


def _unnamed(config: PipelineConfig, records: Sequence[IterationRecord]) -> Iterator[str]:
    """What no record names: the gate's decisions, and the shards whose trees were gathered."""
    for end in range(1, len(records) + 1):
        yield decide_gate.uri(config=config, records=records[:end])
    policies = {record.index: record.policy for record in records}
    for record in records:
        parent = None if record.parent is None else policies.get(record.parent)
        if parent is None or "problems" not in record.refs:
            continue
        problems = record.refs["problems"]
        same = {"config": config, "problems": problems, "policy": parent, "iteration": record.index}
        try:
            for arguments in _passes(same, tuple(stage_refs(record, "first_search"))):
                yield gather_trees.uri(**arguments)
                for shard in range(min(config.search.num_shards, problems.num_rows)):
                    yield search_shard.uri(**arguments, shard=shard)
        except (OSError, ValueError):  # the model is gone from this machine, whose template is part of the key
            continue


def _passes(same: Mapping[str, Any], first_search: tuple[Ref, ...]) -> Iterator[dict[str, Any]]:
    """Arguments of every pass of an iteration's search: the first, what spends its savings, the audit's remedy."""
    yield {**same, "earlier": ()}
    if first_search:
        yield {**same, "earlier": first_search}
    first = gather_trees.find(**same, earlier=()) if same["config"].search.spends_saved else None
    if first is not None:
        yield {**same, "earlier": (first,), "spends_saved": True}
