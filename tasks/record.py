"""Puts an iteration on record: one JSON in the store, one run in MLflow, one table in Prefect.

A record is a stage's result too: what it found lies in its entry's ``record.json``, what differs from one run to the
next of equal records, seconds, rates and the id of an MLflow run, beside it under a seal. A finished record is written
again only when MLflow has lost its run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.evaluation import paired_test, read_predictions
from pipeline_lib.gate import best_so_far, decide
from pipeline_lib.report.tables import average_name, format_average
from pipeline_lib.search import SearchStats, total_stats
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.tracking import Tracker, TrackingOutage
from pipeline_lib.types import EvalReport, IterationRecord, PairedTest, PolicyRef, Ref
from tasks.audit import load_audit
from tasks.evaluate import FAILURES, PREDICTIONS, load_report
from tasks.reporting.iteration_contents import contents_of, figures_page, histories_of
from tasks.runtime.artifacts import show_markdown, show_table
from tasks.runtime.flow_tracking import is_tracked, open_tracker, run_key
from tasks.runtime.keys import key_of
from tasks.runtime.stage import Done, figures_of, open_store, seconds_of, stage
from tasks.search import total_counts

Stages = Mapping[str, tuple[Ref, ...]]  # references by stage, one per shard

RECORD, RECORD_FILE = "record", "record.json"
MEASURED = {"search", "train", "evaluate", "seconds", "tracking_run"}  # differ between runs of equal records


def records_spec(records: Sequence[IterationRecord]) -> list[dict[str, Any]]:
    """What later stages depend on of records: all but what differs from one run to the next of equal ones."""
    return [key_of(record, without=MEASURED) for record in records]


def _record_spec(
    *,
    config: PipelineConfig,
    index: int,
    parent: PolicyRef | None,
    policy: PolicyRef,
    stages: Stages,
    evaluations: Sequence[Ref],
    earlier: Sequence[IterationRecord],
) -> dict[str, Any]:
    return {
        "run": run_key(config),
        "index": index,
        "policy": key_of(policy),
        "stages": {name: [ref.sha256 for ref in refs] for name, refs in stages.items()},
        "earlier": records_spec(earlier),
        **({"parent": parent.iteration} if parent is not None and parent.iteration != index - 1 else {}),
    }


def load_record(entry: Entry) -> IterationRecord:
    """What `record_iteration` put on record; version 0.1.0 had all of it in the measurements."""
    measured = entry.observations()[RECORD]
    found = read_json(entry.path / RECORD_FILE) if (entry.path / RECORD_FILE).is_file() else {}
    return IterationRecord.model_validate({**measured, **found})


@stage(
    _record_spec,
    run_name="record {index}",
    result=load_record,
    still_holds=lambda entry, **_: is_tracked(entry, RECORD),
    transient=(TrackingOutage,),
)
def record_iteration(
    entry: Entry,
    *,
    config: PipelineConfig,
    index: int,
    parent: PolicyRef | None,
    policy: PolicyRef,
    stages: Stages,
    evaluations: Sequence[Ref],
    earlier: Sequence[IterationRecord],
) -> Done:
    """Gathers what the stages of one iteration left, and writes it to MLflow once.

    Args:
        entry: filled with ``record.json``; its observations become the rest of the record.
        config: gate, seed and preset.
        index: 0 for the base.
        parent: what the iteration searched with and trained from; None for the base.
        policy: what the iteration ended with; the parent where it did not train.
        stages: references by stage: ``problems``, ``search``, ``score``, ``audit``, ``train``; ``first_search`` is the
            one before the audit's remedy.
        evaluations: what `evaluate_policy` returned, set by set.
        earlier: records of the iterations before, base first.
    """
    record = make_record(
        config=config,
        index=index,
        parent=parent,
        policy=policy,
        stages=stages,
        evaluations=evaluations,
        earlier=earlier,
    )
    tracked = record.model_copy(update={"tracking_run": _track(config, record, earlier)})
    write_json(entry.path / RECORD_FILE, tracked.model_dump(mode="json", exclude=MEASURED))
    return Done(len(evaluations), {RECORD: tracked.model_dump(mode="json", include=MEASURED)})


def make_record(
    *,
    config: PipelineConfig,
    index: int,
    parent: PolicyRef | None,
    policy: PolicyRef,
    stages: Stages,
    evaluations: Sequence[Ref],
    earlier: Sequence[IterationRecord],
) -> IterationRecord:
    """What `record_iteration` puts on record, without an MLflow run; it takes the same arguments."""
    reports = tuple(load_report(ref) for ref in evaluations)
    return IterationRecord(
        index=index,
        policy=policy,
        parent=None if parent is None else parent.iteration,
        evaluations=reports,
        paired=_paired_tests(reports, earlier, config.problems.dataset),
        audit=load_audit(stages["audit"][0]) if "audit" in stages else None,
        search=_search_metrics(stages.get("search", ()), stages.get("first_search", ())),
        train=figures_of(stages["train"][0]) if "train" in stages else {},
        evaluate=_failures(evaluations),
        seconds=_seconds({**stages, "evaluate": tuple(evaluations)}),
        refs={
            f"{name}/{i}" if len(refs) > 1 else name: ref for name, refs in stages.items() for i, ref in enumerate(refs)
        },
    )


def _paired_tests(
    reports: Sequence[EvalReport], earlier: Sequence[IterationRecord], dataset: str
) -> tuple[PairedTest, ...]:
    """Against the base and, from iteration 2 on, the one before; on validation against all, for gates of any dials."""
    if not reports or not earlier:
        return ()
    rivals = {"base": earlier[0]} | ({"previous": earlier[-1]} if len(earlier) > 1 else {})
    best = {"best": best_so_far(earlier, dataset=dataset)}
    others = {f"iteration {record.index}": record for record in earlier[1:-1] if record != best["best"]}
    tests = (
        _paired_test(before, report, name, record.index)
        for name, record in (rivals | best | others).items()
        for report in reports
        if name in rivals or report.split == "validation"
        if (before := record.evaluation(report.dataset, report.split)) is not None
    )
    return tuple(test for test in tests if test is not None)


def _paired_test(before: EvalReport, after: EvalReport, against: str, against_iteration: int) -> PairedTest | None:
    """Of the problems that neither policy has ignored; None where there is none."""
    was_right, is_right = _correct(before), _correct(after)
    counted = was_right.keys() & is_right.keys() if before.num_ignored or after.num_ignored else was_right.keys()
    if not counted:
        return None
    return paired_test(
        {key: right for key, right in was_right.items() if key in counted},
        {key: right for key, right in is_right.items() if key in counted},
        dataset=after.dataset,
        split=after.split,
        against=against,
        against_iteration=against_iteration,
    )


def _correct(report: EvalReport) -> dict[str, bool]:
    """Problem id to whether the greedy answer was right; ignored ones are neither."""
    assert report.predictions is not None
    folder = open_store().open(report.predictions)
    return {p.problem_id: p.is_correct for p in read_predictions(folder / PREDICTIONS) if not p.is_ignored}


def _search_metrics(refs: Sequence[Ref], first: Sequence[Ref]) -> dict[str, float]:
    """Stats of a search, and whether they equal an uninterrupted one: they do where the engine is batch-invariant.

    ``num_resumed`` counts trees that an earlier, killed process had finished. Rollouts and tokens are those of the
    whole search, counted in its trees; rates and seconds are measured, and those of the process that ended it.

    Args:
        refs: the iteration's trees.
        first: those before the audit's remedy, which the others go on from.
    """
    if not refs:
        return {}
    names = set(SearchStats.model_fields)
    observed = [open_store().observations(ref) for ref in (*first, *refs)]
    measured = [{k: v for k, v in shard.items() if k in names} for shard in observed]
    return total_stats([SearchStats.model_validate(shard) for shard in measured if shard]).metrics() | {
        **total_counts(refs),
        "num_resumed": sum(shard.get("num_resumed", 0.0) for shard in observed),
        "batch_invariant": min(shard.get("batch_invariant", 1.0) for shard in observed),
    }


def _failures(evaluations: Sequence[Ref]) -> dict[str, float]:
    """Answers that the engine failed to give, over all sets; nothing of sets that version 0.1.0 measured."""
    observed = [open_store().observations(ref) for ref in evaluations]
    return {
        name: float(sum(of.get(name, 0) for of in observed)) for name in FAILURES if any(name in of for of in observed)
    }


def _seconds(stages: Stages) -> dict[str, float]:
    seconds = {name: sum(map(seconds_of, refs)) for name, refs in stages.items()}
    return {name: value for name, value in seconds.items() if not math.isnan(value)}


def _track(config: PipelineConfig, record: IterationRecord, earlier: Sequence[IterationRecord]) -> str:
    """Writes the iteration to MLflow, and what the records say together; returns the id of its MLflow run."""
    tracker, records = open_tracker(config), [*earlier, record]
    if record.index == 0:
        _link(tracker)
    run = tracker.log_iteration(record, contents_of(record, earlier))
    tracker.log_files({}, figures_page(f"{config.preset}, seed {config.seed}", records, histories_of(records)))
    tracker.write_description(records, decide(records, config.gate, dataset=config.problems.dataset))
    show_table(_rows(record), key="accuracy", description=f"Iteration {record.index}")
    return run


def _link(tracker: Tracker) -> None:
    """From the flow run's artifacts to its MLflow run; without a server there is no page to link to."""
    text = f"MLflow run `{tracker.run_id}`" if tracker.url is None else f"[MLflow run]({tracker.url})"
    show_markdown(text, key="mlflow-run", description="Metrics and models")


def _rows(record: IterationRecord) -> list[dict[str, Any]]:
    reports = record.evaluations
    return [
        {
            "dataset": report.dataset,
            "split": report.split,
            "accuracy": f"{report.accuracy:.1%}",
            "95 % interval": "{:.1%} – {:.1%}".format(*report.interval),
            average_name(reports) or "samples": format_average(report),
            "unparsed": report.num_unparsed,
            "truncated": report.num_truncated,
        }
        for report in reports
    ] or [{"dataset": "none", "split": "", "accuracy": "not trained: see the audit"}]
