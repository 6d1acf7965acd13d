"""What a run leaves in MLflow: one parent per pipeline run, one child per iteration.

One idea: everything is search-or-create. A run is found by its key, a metric by its name and step,
a model by its policy; so a killed or retried pipeline attaches to what is there and adds only what
is missing.

Two openings of the same key at the same moment could both create it; a pipeline opens its tracker
from one place at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.policy.export.adapter_files import base_location, with_base_named
from pipeline_lib.registry import LoggedAdapter
from pipeline_lib.registry.lineage import PARENT_ITERATION, POLICY_ID, version_tags
from pipeline_lib.report.metrics import flatten, is_headline, record_metrics, version_scores
from pipeline_lib.report.notes import iteration_note, run_link, run_note, version_note
from pipeline_lib.store import canonical_json
from pipeline_lib.tracking.client import find_experiment, import_mlflow, open_client, open_tracing_client, page_url
from pipeline_lib.tracking.links import link_into
from pipeline_lib.tracking.reading import RUN_FILE, STOPPED
from pipeline_lib.tracking.registered_model import open_registry
from pipeline_lib.tracking.traces import log_traces
from pipeline_lib.tracking.tracked_run import Point, TrackedRun
from pipeline_lib.tracking.tree_traces import TreeTrace
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Promotion, Ref, RunResult

RUN_KEY = "coppice.run_key"
NOTE = "mlflow.note.content"
FLOW_RUN, FLOW_RUN_URL = "prefect.flow_run_id", "prefect.flow_run_url"
COMMIT, COMMITS = "mlflow.source.git.commit", "coppice.commits"
ORIGIN_TAGS = (FLOW_RUN, FLOW_RUN_URL, COMMIT, "git/dirty")
RESULTS = "coppice.results"
CHAMPION = "coppice.champion"


@dataclass(frozen=True)
class IterationContents:
    """What an iteration leaves in MLflow besides the numbers of its record.

    Args:
        artifacts: name to file or folder (trees, scores).
        texts: name to text (``figures.html``).
        curves: (metric, update, value), for metrics that have a value per update; see `report.metrics.update_points`.
        traces: a few of its trees, see `tree_traces`.
        adapter: folder of the trained adapter or full weights; None where nothing was trained.
        parent: the policy that it was trained from; needed with `adapter`.
    """

    artifacts: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[Point] = ()
    traces: Sequence[TreeTrace] = ()
    adapter: Path | None = None
    parent: PolicyRef | None = None


class Tracker(TrackedRun):
    """A pipeline run in MLflow: its parent run, a child run per iteration, its registered adapters."""

    def __init__(self, client: Any, run: Any, *, run_key: str, config: PipelineConfig, settings: Settings):
        super().__init__(client, import_mlflow().entities, run)
        self._experiment_id = str(run.info.experiment_id)
        self._run_key = run_key
        self._config = config
        self._settings = settings
        self.registry = open_registry(settings, config.preset)

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        run_key: str,
        run_name: str,
        config: PipelineConfig,
        tags: Mapping[str, str] | None = None,
    ) -> Tracker:
        """Attaches to the run with `run_key`, or creates it with the whole configuration as parameters.

        One that had failed or was killed is RUNNING again; one that is FINISHED stays so.

        Args:
            settings: says where the tracking server or database is.
            run_key: identifies the pipeline run; the same for every retry of it.
            run_name: the run's name in MLflow.
            config: logged as flat parameters, ``search.c_uct`` and so on.
            tags: further tags: `provenance.describe_environment` and the orchestrator's run id.
        """
        client = open_client(settings)
        run = _attach(client, find_experiment(client, settings), run_key, run_name, {})
        tracker = cls(client, run, run_key=run_key, config=config, settings=settings)
        tracker.reopen()
        own = {"coppice.seed": str(config.seed), "coppice.preset": config.preset}
        tracker.log(params=_params(config), tags={**own, **(tags or {}), **tracker.commits(tags or {})})
        return tracker

    def commits(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Tags with all commits that worked on the run, the first one first; a finished run's own stays its last."""
        known = self._tags.get(COMMITS, self._tags.get(COMMIT, "")).split()
        own = {COMMIT: self._tags[COMMIT]} if self.is_finished and COMMIT in self._tags else {}
        commits = dict.fromkeys([*known, *([tags[COMMIT]] if COMMIT in tags else [])])
        return {**own, **({COMMITS: " ".join(commits)} if commits else {})}

    @property
    def url(self) -> str | None:
        """Where a browser shows the run; None without a server."""
        return page_url(self._settings, run_link(self._experiment_id, self.run_id))

    def iteration_run(self, index: int) -> TrackedRun:
        """The child run of one iteration, created if it is not there."""
        name = "base" if index == 0 else f"iteration {index}"
        parent = {"mlflow.parentRunId": self.run_id}
        run = _attach(self._client, self._experiment_id, f"{self._run_key}/{index}", name, parent)
        child = TrackedRun(self._client, self._entities, run)
        child.log(params=_params(self._config) | {"iteration": str(index)}, tags={"coppice.iteration": str(index)})
        return child

    def log_iteration(self, record: IterationRecord, contents: IterationContents | None = None) -> str:
        """Writes one finished iteration, registers its adapter, ends its child run, mirrors the headline on the parent.

        Args:
            record: becomes ``record.json``, metrics at step ``record.index`` and dataset inputs.
            contents: what is written besides the record.

        Returns:
            The child's run id.
        """
        contents = contents or IterationContents()
        run = self.iteration_run(record.index)
        run.reopen()
        results = _results_digest(record)
        is_another = run.tag(RESULTS) not in (None, results)  # other code made it, or a stage's new version
        model = self._logged_model(run, record) if contents.adapter else None
        metrics = record_metrics(record)
        points = [(name, record.index, value) for name, value in metrics.items()]
        origin = {} if record.parent is None else {PARENT_ITERATION: str(record.parent)}
        tags = {POLICY_ID: record.policy.policy_id, **origin}
        run.log(points=points, tags=tags, model_id=model.model_id if model else None, again=is_another)
        run.log(points=contents.curves, again=is_another)
        run.log_datasets(_datasets(record), root=self._settings.store_uri)
        run.log_files(contents.artifacts, {"record.json": record.model_dump_json(indent=2), **contents.texts})
        self._log_traces(run, contents.traces)
        version = self._register(run, record, model, contents, version_scores(metrics)) if model else None
        parent = f"[Pipeline run]({run_link(self._experiment_id, self.run_id)})"
        note = iteration_note(record, parent=parent, version=version, model=self.registry.name)
        run.set_tags({NOTE: note, RESULTS: results} | ({"coppice.version": version} if version else {}))
        run.end("FINISHED")
        self.log(points=[(name, step, value) for name, step, value in points if is_headline(name)], again=is_another)
        return run.run_id

    def write_description(
        self, records: Sequence[IterationRecord], decision: GateDecision, *, result: RunResult | None = None
    ) -> None:
        """Writes the run's description: table, decision, reason, and where it was orchestrated.

        Args:
            records: the base first, then the iterations in order.
            decision: the gate's latest.
            result: of the finished run; None while it goes on.
        """
        origin = _origin(self._tags)
        self.set_tags({NOTE: run_note(records, decision, result=result, origin=origin, model=self.registry.name)})

    def apply_gate_decision(self, records: Sequence[IterationRecord], decision: GateDecision) -> Promotion:
        """Tags the run with its champion, and its versions as `Registry.apply_gate_decision` does."""
        self.set_tags({CHAMPION: str(decision.champion)})
        return self.registry.apply_gate_decision(records, decision)

    def finish(self, result: RunResult, *, texts: Mapping[str, str] | None = None) -> None:
        """Writes the whole result (``run.json``, which `load_run` reads), its tags, and ends the run as FINISHED."""
        saved = {"config": self._config.model_dump(mode="json"), "result": result.model_dump(mode="json")}
        self.log_files({}, {RUN_FILE: json.dumps(saved, indent=2), **(texts or {})})
        self.log(
            points=[("time/wall_s", len(result.records) - 1, result.wall_s)],
            tags={STOPPED: result.stopped_because, "coppice.gate": result.decision.reason},
        )
        self.write_description(result.records, result.decision, result=result)
        self.end("FINISHED")

    def _logged_model(self, run: TrackedRun, record: IterationRecord) -> Any:
        mine = f"source_run_id = '{run.run_id}' AND tags.`{POLICY_ID}` = '{record.policy.policy_id}'"
        found = self._client.search_logged_models([self._experiment_id], filter_string=mine)
        if found:
            return found[0]
        name, tags = f"adapter-{record.index}", {POLICY_ID: record.policy.policy_id}
        kind = "full-weights" if self._config.train.full_finetuning else "peft-adapter"
        return self._client.create_logged_model(self._experiment_id, name, run.run_id, tags=tags, model_type=kind)

    def _register(
        self,
        run: TrackedRun,
        record: IterationRecord,
        model: Any,
        contents: IterationContents,
        scores: Mapping[str, float],
    ) -> str:
        assert contents.parent is not None
        assert contents.adapter is not None
        if str(model.status) != "READY":
            policy = record.policy
            with with_base_named(contents.adapter, base_location(policy.base_model), policy.revision) as folder:
                if not link_into(model.artifact_location, folder, ""):
                    self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
            output = self._entities.LoggedModelOutput(model.model_id, step=record.index)
            self._client.log_outputs(run.run_id, [output])
        parent = contents.parent
        parent_version = self.registry.version_of(parent.policy_id) if parent.adapter_uri else None
        origin = {name: self._tags[name] for name in ORIGIN_TAGS if name in self._tags}
        tags = {"coppice.run_id": self.run_id, **origin, **version_tags(record, parent, parent_version, scores)}
        # Not models:/…: MLflow's database store looks that up in the process-wide tracking URI, whatever the client's.
        adapter = LoggedAdapter(
            source=model.artifact_location,
            model_id=model.model_id,
            run_id=run.run_id,
            tags=tags,
            description=version_note(record, parent_version, tags),
        )
        return self.registry.register(record.policy.policy_id, adapter)

    def _log_traces(self, run: TrackedRun, traces: Sequence[TreeTrace]) -> None:
        if not traces:
            return
        log_traces(
            open_tracing_client(self._settings),
            self._entities,
            traces,
            experiment_id=self._experiment_id,
            run_id=run.run_id,
            begin_ms=run.begin_ms,
        )


def _params(config: PipelineConfig) -> dict[str, str]:
    """Every setting but the name, which the run has anyway: given again under another one it is the same run."""
    return {name: value for name, value in flatten(config).items() if name != "name"}


def _datasets(record: IterationRecord) -> dict[str, Ref]:
    """What the iteration read and made, by reference: problems, trees, scores, and the sets it was measured on."""
    measured = {f"{e.split}/{e.dataset}": e.problems for e in record.evaluations if e.problems is not None}
    return {**record.refs, **measured}


def _results_digest(record: IterationRecord) -> str:
    """Tells apart what two iterations came to, not how long they took."""
    refs = {name: ref.sha256 for name, ref in record.refs.items()}
    answers = [report.predictions.sha256 for report in record.evaluations if report.predictions is not None]
    return hashlib.sha256(canonical_json([record.policy.policy_id, refs, answers]).encode()).hexdigest()[:16]


def _origin(tags: Mapping[str, str]) -> str:
    """A line of Markdown: the flow run, by its address where there is a server."""
    if FLOW_RUN_URL in tags:
        return f"[Prefect flow run]({tags[FLOW_RUN_URL]})"
    return f"Prefect flow run `{tags[FLOW_RUN]}`" if FLOW_RUN in tags else ""


def _attach(client: Any, experiment_id: str, run_key: str, run_name: str, tags: Mapping[str, str]) -> Any:
    found = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, run_name=run_name, tags={**tags, RUN_KEY: run_key})
