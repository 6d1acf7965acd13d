"""What a run leaves in MLflow: one parent per pipeline run, one child per iteration.

One idea: everything is search-or-create. A run is found by its key, a metric by its name and step,
a model by its policy; so a killed or retried pipeline attaches to what is there and adds only what
is missing. The only file that imports MLflow, and it does so late: importing it takes seconds.

Two openings of the same key at the same moment could both create it; a pipeline opens its tracker
from one place at a time.

    tracked_run.py     one run                     registry.py    versions and aliases
    tracked_traces.py  a few trees as traces       notes.py       descriptions in Markdown
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.lineage import BASE_MODEL, BASE_REVISION, POLICY_ID
from pipeline_lib.metrics import flatten, is_headline, record_metrics
from pipeline_lib.notes import iteration_note, run_link, run_note
from pipeline_lib.outage import NamingClient, TrackingError, TrackingOutage, without_password
from pipeline_lib.registry import LoggedAdapter, Registry
from pipeline_lib.traces import TreeTrace
from pipeline_lib.tracked_run import Point, TrackedRun
from pipeline_lib.tracked_traces import log_traces
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Promotion, Record, Ref, RunResult

EXPERIMENT = "coppice"
RUN_KEY = "coppice.run_key"
NOTE = "mlflow.note.content"
FLOW_RUN, FLOW_RUN_URL = "prefect.flow_run_id", "prefect.flow_run_url"
ORIGIN_TAGS = (FLOW_RUN, FLOW_RUN_URL, "mlflow.source.git.commit", "git/dirty")
STOPPED = "coppice.stopped_because"
CHAMPION = "coppice.champion"
RUN_FILE = "run.json"
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Sent again blindly, a request whose answer was lost makes a second run; a task that is tried again looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def tracking_uri(settings: Settings) -> str:
    """The MLflow server of `settings`, or the database below its home."""
    return settings.tracking_uri or f"sqlite:///{settings.home.resolve() / 'mlflow.db'}"


@dataclass(frozen=True)
class Contents:
    """What an iteration leaves besides the numbers of its record.

    Args:
        artifacts: name to file or folder (trees, scores).
        texts: name to text (``figures.html``).
        curves: (metric, update, value), for metrics that have a value per update; see `metrics.update_points`.
        traces: a few of its trees.
        adapter: folder of what was trained; None where nothing was.
        parent: the policy that it was trained from.
    """

    artifacts: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[Point] = ()
    traces: Sequence[TreeTrace] = ()
    adapter: Path | None = None
    parent: PolicyRef | None = None


class Champion(Record):
    """The registered version that the alias `champion` names."""

    model: str
    version: str
    policy_id: str
    iteration: int
    base_model: str = Field(description="The model that it was trained on.")
    revision: str | None = Field(None, description="Of that model on the hub.")
    source: str = Field(description="Where its files lie.")


class Tracker(TrackedRun):
    """A pipeline run's parent, its iterations and its registered adapters."""

    def __init__(self, client: Any, run: Any, *, run_key: str, config: PipelineConfig, settings: Settings):
        super().__init__(client, _mlflow().entities, run)
        self._experiment_id = str(run.info.experiment_id)
        self._run_key = run_key
        self._config = config
        self._settings = settings
        self.registry = Registry(client, model_name(config.preset))

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
            settings: where the tracking server or database is.
            run_key: the same for every retry of one pipeline run.
            run_name: what people see.
            config: logged flat, ``search.c_uct`` and so on.
            tags: anything else; `provenance.describe_environment` and the orchestrator's run id.
        """
        client = _open_client(settings)
        run = _attach(client, _experiment_id(client, settings), run_key, run_name, {})
        tracker = cls(client, run, run_key=run_key, config=config, settings=settings)
        tracker.reopen()
        own = {"coppice.seed": str(config.seed), "coppice.preset": config.preset}
        tracker.log(params=flatten(config), tags={**own, **(tags or {})})
        return tracker

    @property
    def url(self) -> str | None:
        """Where a browser shows the run; None without a server."""
        return page_url(self._settings, run_link(self._experiment_id, self.run_id))

    def iteration(self, index: int) -> TrackedRun:
        """The child run of one iteration, created if it is not there."""
        name = "base" if index == 0 else f"iteration {index}"
        parent = {"mlflow.parentRunId": self.run_id}
        run = _attach(self._client, self._experiment_id, f"{self._run_key}/{index}", name, parent)
        child = TrackedRun(self._client, self._entities, run)
        child.log(params=flatten(self._config) | {"iteration": str(index)}, tags={"coppice.iteration": str(index)})
        return child

    def log_iteration(self, record: IterationRecord, contents: Contents | None = None) -> str:
        """Writes one finished iteration, registers its adapter, ends its child run, mirrors the headline on the parent.

        Args:
            record: becomes ``record.json``, metrics at step ``record.index`` and dataset inputs.
            contents: everything else.

        Returns:
            The child's run id.
        """
        contents = contents or Contents()
        run = self.iteration(record.index)
        run.reopen()
        model = self._logged_model(run, record) if contents.adapter else None
        metrics = record_metrics(record)
        points = [(name, record.index, value) for name, value in metrics.items()]
        policy = {POLICY_ID: record.policy.policy_id}
        run.log(points=points, tags=policy, model_id=model.model_id if model else None)
        run.log_points(contents.curves)
        run.log_datasets(_datasets(record), root=self._settings.store_uri)
        run.log_files(contents.artifacts, {"record.json": record.model_dump_json(indent=2), **contents.texts})
        self._log_traces(run, contents.traces)
        version = self._register(run, record, model, contents) if model else None
        parent = f"[Pipeline run]({run_link(self._experiment_id, self.run_id)})"
        note = iteration_note(record, parent=parent, version=version, model=self.registry.name)
        run.set_tags({NOTE: note} | ({"coppice.version": version} if version else {}))
        run.end("FINISHED")
        self.log_points((name, step, value) for name, step, value in points if is_headline(name))
        return run.run_id

    def describe(
        self, records: Sequence[IterationRecord], decision: GateDecision, *, result: RunResult | None = None
    ) -> None:
        """Writes the run's description: table, decision, reason, and where it was orchestrated."""
        origin = _origin(self._tags)
        self.set_tags({NOTE: run_note(records, decision, result=result, origin=origin, model=self.registry.name)})

    def settle(self, records: Sequence[IterationRecord], decision: GateDecision) -> Promotion:
        """Puts the gate's last word on the run and on its versions; see `Registry.settle`."""
        self.set_tags({CHAMPION: str(decision.champion)})
        return self.registry.settle(records, decision)

    def finish(self, result: RunResult, *, texts: Mapping[str, str] | None = None) -> None:
        """Writes the whole result (``run.json``, which `load_run` reads), its tags, and ends the run as FINISHED."""
        saved = {"config": self._config.model_dump(mode="json"), "result": result.model_dump(mode="json")}
        self.log_files({}, {RUN_FILE: json.dumps(saved, indent=2), **(texts or {})})
        self.log(
            points=[("time/wall_s", len(result.records) - 1, result.wall_s)],
            tags={STOPPED: result.stopped_because, "coppice.gate": result.decision.reason},
        )
        self.describe(result.records, result.decision, result=result)
        self.end("FINISHED")

    def _logged_model(self, run: TrackedRun, record: IterationRecord) -> Any:
        mine = f"source_run_id = '{run.run_id}' AND tags.`{POLICY_ID}` = '{record.policy.policy_id}'"
        found = self._client.search_logged_models([self._experiment_id], filter_string=mine)
        if found:
            return found[0]
        name, tags = f"adapter-{record.index}", {POLICY_ID: record.policy.policy_id}
        kind = "full-weights" if self._config.train.full_finetuning else "peft-adapter"
        return self._client.create_logged_model(self._experiment_id, name, run.run_id, tags=tags, model_type=kind)

    def _register(self, run: TrackedRun, record: IterationRecord, model: Any, contents: Contents) -> str:
        assert contents.parent is not None
        if str(model.status) != "READY":
            self._client.log_model_artifacts(model.model_id, str(contents.adapter))
            self._client.finalize_logged_model(model.model_id, "READY")
            output = self._entities.LoggedModelOutput(model.model_id, step=record.index)
            self._client.log_outputs(run.run_id, [output])
        origin = {name: self._tags[name] for name in ORIGIN_TAGS if name in self._tags}
        # Not models:/…: MLflow's database store looks that up in the process-wide tracking URI, whatever the client's.
        adapter = LoggedAdapter(
            source=model.artifact_location,
            model_id=model.model_id,
            run_id=run.run_id,
            parent=contents.parent,
            tags={"coppice.run_id": self.run_id, **origin},
        )
        return self.registry.register(record, adapter)

    def _log_traces(self, run: TrackedRun, traces: Sequence[TreeTrace]) -> None:
        if not traces:
            return
        from mlflow.tracing.client import TracingClient

        uri = tracking_uri(self._settings)
        log_traces(
            NamingClient(TracingClient(uri), uri),
            self._entities,
            traces,
            experiment_id=self._experiment_id,
            run_id=run.run_id,
            begin_ms=run.begin_ms,
        )


def model_name(preset: str) -> str:
    """The registered model of a preset."""
    return f"coppice-{preset}"


def open_registry(settings: Settings, preset: str) -> Registry:
    """The registered versions of a preset's adapters."""
    return Registry(_open_client(settings), model_name(preset))


def page_url(settings: Settings, link: str) -> str | None:
    """The address of a page of the tracking server, without credentials; None without a server.

    Example: with the server ``http://me:secret@host:5000`` and ``#/experiments/1`` it is
    ``http://host:5000/#/experiments/1``.
    """
    uri = urlsplit(tracking_uri(settings))
    if not uri.scheme.startswith("http"):
        return None
    place = uri.netloc.rpartition("@")[2]
    return urlunsplit((uri.scheme, place, f"{uri.path.rstrip('/')}/", "", link.removeprefix("#")))


def load_run(settings: Settings, run_id: str | None = None) -> tuple[PipelineConfig, RunResult]:
    """Configuration and result of a finished run, the latest when `run_id` is None.

    Raises:
        TrackingError: there is no such run, or it has not finished.
    """
    client = _open_client(settings)
    if run_id is None:
        run_id = _latest_finished(client, settings)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(run_id, RUN_FILE, folder))
        except TrackingOutage:
            raise
        except Exception as error:  # MLflow raises its own, OSError or the store's, depending on where artifacts lie
            raise TrackingError(
                f"tracking: run {run_id} has no {RUN_FILE}; it is unknown or has not finished"
            ) from error
        saved = json.loads(path.read_text(encoding="utf-8"))
    return PipelineConfig.model_validate(saved["config"]), RunResult.model_validate(saved["result"])


def load_text(settings: Settings, run_id: str, name: str) -> str | None:
    """An artifact of a run as text; None when the run has none of that name."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(_open_client(settings).download_artifacts(run_id, name, folder))
        except TrackingOutage:
            raise
        except Exception:  # as in `load_run`
            return None
        return path.read_text(encoding="utf-8")


def registered_champion(settings: Settings, preset: str) -> Champion | None:
    """The version that is champion of a preset; None before the first promotion.

    Raises:
        TrackingError: somebody gave the alias to a version that no run registered.
    """
    client, name = _open_client(settings), model_name(preset)
    models = client.search_registered_models(f"name = '{name}'")
    number = models[0].aliases.get("champion") if models else None
    if number is None:
        return None
    version = client.get_model_version(name, number)
    if missing := {POLICY_ID, "coppice.iteration", BASE_MODEL} - version.tags.keys():
        raise TrackingError(
            f"registry: {name} version {number}, its champion, has no tag {min(missing)}: no run registered it; "
            "move the alias to one that a run did with `coppice promote`"
        )
    return Champion(
        model=name,
        version=str(number),
        policy_id=version.tags[POLICY_ID],
        iteration=int(version.tags["coppice.iteration"]),
        base_model=version.tags[BASE_MODEL],
        revision=version.tags.get(BASE_REVISION),
        source=version.source,
    )


def download_champion(settings: Settings, champion: Champion, folder: Path) -> Path:
    """Copies a version's files, adapter or full weights, to somewhere below `folder`; returns where they lie."""
    uri = tracking_uri(settings)
    copied = NamingClient(_mlflow().artifacts, uri).download_artifacts(
        artifact_uri=champion.source, dst_path=str(folder), tracking_uri=uri
    )
    return Path(copied)


def reach(settings: Settings) -> None:
    """Asks the tracking server or database for the experiment, which it makes if need be.

    Raises:
        TrackingError: it does not answer, or refuses.
    """
    _experiment_id(_open_client(settings), settings)


def has_finished(settings: Settings, run_id: str) -> bool:
    """Whether the run is there and ended well; False also where the server does not say."""
    try:
        info = _open_client(settings).get_run(run_id).info
    except TrackingOutage:
        return False
    except _mlflow().exceptions.MlflowException:  # no such run: another database, or one that was lost
        return False
    return bool(info.status == "FINISHED" and info.lifecycle_stage == "active")


def _mlflow() -> Any:
    # Read while MLflow is imported: nothing leaves the machine unasked, nothing is printed into our output.
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def _open_client(settings: Settings) -> Any:
    uri = tracking_uri(settings)
    if settings.tracking_uri is None:
        settings.home.mkdir(parents=True, exist_ok=True)
    mlflow = _mlflow()
    for name in ("alembic", "mlflow"):  # a new database logs every one of its migrations; importing sets the level
        logging.getLogger(name).setLevel(logging.WARNING)
    return NamingClient(mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri), uri)


def _experiment_id(client: Any, settings: Settings) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None if settings.tracking_uri else (settings.home.resolve() / "mlartifacts").as_uri()
    # Without the kind, the UI opens the experiment in its view for traces, which is empty here.
    return str(client.create_experiment(EXPERIMENT, location, {"mlflow.experimentKind": "custom_model_development"}))


def _attach(client: Any, experiment_id: str, run_key: str, run_name: str, tags: Mapping[str, str]) -> Any:
    found = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, run_name=run_name, tags={**tags, RUN_KEY: run_key})


def _datasets(record: IterationRecord) -> dict[str, Ref]:
    """What the iteration read and made, by reference: problems, trees, scores, and the sets it was measured on."""
    measured = {f"{e.split}/{e.dataset}": e.problems for e in record.evaluations if e.problems is not None}
    return {**record.refs, **measured}


def _origin(tags: Mapping[str, str]) -> str:
    """A line of Markdown: the flow run, by its address where there is a server."""
    if FLOW_RUN_URL in tags:
        return f"[Prefect flow run]({tags[FLOW_RUN_URL]})"
    return f"Prefect flow run `{tags[FLOW_RUN]}`" if FLOW_RUN in tags else ""


def _latest_finished(client: Any, settings: Settings) -> str:
    query = f"attributes.status = 'FINISHED' AND tags.`{STOPPED}` != ''"
    experiment = _experiment_id(client, settings)
    found = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        raise TrackingError(
            f"tracking: no finished run in {without_password(tracking_uri(settings))}; start one with `coppice run`"
        )
    return str(found[0].info.run_id)
