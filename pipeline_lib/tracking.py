"""What a run leaves in MLflow: one parent per pipeline run, one child per iteration.

One idea: everything is search-or-create. A run is found by its key, a metric by its name and step,
a model by its policy; so a killed or retried pipeline attaches to what is there and adds only what
is missing. The only file that imports MLflow, and it does so late: importing it takes seconds.

Two openings of the same key at the same moment could both create it; a pipeline opens its tracker
from one place at a time.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.metrics import flatten, is_headline, record_metrics
from pipeline_lib.tracked_run import Point, TrackedRun, TrackingError
from pipeline_lib.types import IterationRecord, RunResult

EXPERIMENT = "coppice"
RUN_KEY = "coppice.run_key"
POLICY_ID = "coppice.policy_id"
STOPPED = "coppice.stopped_because"
CHAMPION = "coppice.champion"
RUN_FILE = "run.json"
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri(settings: Settings) -> str:
    """The MLflow server of `settings`, or the database below its home."""
    return settings.tracking_uri or f"sqlite:///{settings.home.resolve() / 'mlflow.db'}"


class Tracker(TrackedRun):
    """A pipeline run's parent, its iterations and its registered adapters."""

    def __init__(
        self, client: Any, run_id: str, *, experiment_id: str, run_key: str, config: PipelineConfig, root: Path
    ):
        super().__init__(client, _mlflow().entities, run_id)
        self._experiment_id = experiment_id
        self._run_key = run_key
        self._config = config
        self._root = root
        self.model_name = f"coppice-{config.preset}"

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

        Args:
            settings: where the tracking server or database is.
            run_key: the same for every retry of one pipeline run.
            run_name: what people see.
            config: logged flat, ``search.c_uct`` and so on.
            tags: anything else; `provenance.describe_environment` and the orchestrator's run id.
        """
        client = _open_client(settings)
        experiment_id = _experiment_id(client, settings)
        extra = {"coppice.seed": str(config.seed), "coppice.preset": config.preset} | dict(tags or {})
        run_id = _attach(client, experiment_id, run_key, run_name, extra)
        tracker = cls(
            client, run_id, experiment_id=experiment_id, run_key=run_key, config=config, root=settings.store_root
        )
        tracker.reopen()
        tracker.log_params(flatten(config))
        return tracker

    def iteration(self, index: int) -> TrackedRun:
        """The child run of one iteration, created if it is not there."""
        tags = {"mlflow.parentRunId": self.run_id, "coppice.iteration": str(index)}
        name = "base" if index == 0 else f"iteration {index}"
        run_id = _attach(self._client, self._experiment_id, f"{self._run_key}/{index}", name, tags)
        return TrackedRun(self._client, self._entities, run_id)

    def log_iteration(
        self,
        record: IterationRecord,
        *,
        artifacts: Mapping[str, Path] | None = None,
        texts: Mapping[str, str] | None = None,
        curves: Iterable[Point] = (),
    ) -> str:
        """Writes one finished iteration, ends its child run and mirrors the headline on the parent.

        Args:
            record: becomes ``record.json``, metrics at step ``record.index`` and dataset inputs.
            artifacts: name to file or folder (trees, scores).
            texts: name to text (``figures/audit.html``).
            curves: (metric, update, value), for metrics that have a value per update; see `metrics.update_points`.

        Returns:
            The child's run id.
        """
        run = self.iteration(record.index)
        run.reopen()
        metrics = record_metrics(record)
        run.set_tags({POLICY_ID: record.policy.policy_id})
        run.log_points([(name, record.index, value) for name, value in metrics.items()])
        run.log_points(curves)
        if record.refs:
            run.log_datasets(record.refs, root=self._root)
        run.log_files(artifacts or {}, {"record.json": record.model_dump_json(indent=2), **(texts or {})})
        run.end("FINISHED")
        self.log_points([(name, record.index, value) for name, value in metrics.items() if is_headline(name)])
        return run.run_id

    def register_adapter(self, record: IterationRecord, adapter_dir: Path) -> str:
        """Logs the adapter as a model of its iteration, registers it as `candidate`, returns its version.

        A policy that is registered already keeps its version. To load one again on its
        base: ``PeftModel.from_pretrained(base, mlflow.artifacts.download_artifacts("models:/coppice-tiny@champion"))``.
        """
        version = self._version_of(record.policy.policy_id)
        if version is None:
            version = self._register(record, adapter_dir)
        self._client.set_registered_model_alias(self.model_name, "candidate", version)
        return version

    def set_champion(self, record: IterationRecord) -> str | None:
        """Points the alias `champion` at the record's adapter; None, and no alias, for the base.

        The registered model is the preset's: its champion is that of the preset's last run.
        """
        self.set_tags({CHAMPION: str(record.index)})
        version = self._version_of(record.policy.policy_id) if record.policy.adapter_uri else None
        if version is not None:
            self._client.set_registered_model_alias(self.model_name, "champion", version)
        elif self._client.search_registered_models(f"name = '{self.model_name}'"):
            self._client.delete_registered_model_alias(self.model_name, "champion")
        return version

    def finish(self, result: RunResult, *, texts: Mapping[str, str] | None = None) -> None:
        """Writes the whole result (``run.json``, which `load_run` reads), its tags, and ends the run as FINISHED."""
        saved = {"config": self._config.model_dump(mode="json"), "result": result.model_dump(mode="json")}
        self.log_files({}, {RUN_FILE: json.dumps(saved, indent=2), **(texts or {})})
        self.set_tags({STOPPED: result.stopped_because, "coppice.gate": result.decision.reason})
        self.log_points([("time/wall_s", len(result.records) - 1, result.wall_s)])
        self.end("FINISHED")

    def _version_of(self, policy_id: str) -> str | None:
        found = self._client.search_model_versions(f"name = '{self.model_name}' AND tags.`{POLICY_ID}` = '{policy_id}'")
        return str(found[0].version) if found else None

    def _register(self, record: IterationRecord, adapter_dir: Path) -> str:
        run_id = self.iteration(record.index).run_id
        tags = {POLICY_ID: record.policy.policy_id, "coppice.iteration": str(record.index)}
        mine = f"source_run_id = '{run_id}' AND tags.`{POLICY_ID}` = '{record.policy.policy_id}'"
        found = self._client.search_logged_models([self._experiment_id], filter_string=mine)
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                self._experiment_id, f"adapter-{record.index}", run_id, tags=tags, model_type="peft-adapter"
            )
        )
        self._client.log_model_artifacts(model.model_id, str(adapter_dir))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run_id, [self._entities.LoggedModelOutput(model.model_id, step=record.index)])
        if not self._client.search_registered_models(f"name = '{self.model_name}'"):
            self._client.create_registered_model(self.model_name)
        # Not models:/…: MLflow's database store looks that up in the process-wide tracking URI, whatever the client's.
        source = model.artifact_location
        version = self._client.create_model_version(self.model_name, source, run_id, tags=tags, model_id=model.model_id)
        return str(version.version)


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
        except Exception as error:  # MLflow raises its own, OSError or the store's, depending on where artifacts lie
            raise TrackingError(
                f"tracking: run {run_id} has no {RUN_FILE}; it is unknown or has not finished"
            ) from error
        saved = json.loads(path.read_text(encoding="utf-8"))
    return PipelineConfig.model_validate(saved["config"]), RunResult.model_validate(saved["result"])


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
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment_id(client: Any, settings: Settings) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None if settings.tracking_uri else (settings.home.resolve() / "mlartifacts").as_uri()
    # Without the kind, the UI opens the experiment in its view for traces, which is empty here.
    return str(client.create_experiment(EXPERIMENT, location, {"mlflow.experimentKind": "custom_model_development"}))


def _attach(client: Any, experiment_id: str, run_key: str, run_name: str, tags: Mapping[str, str]) -> str:
    found = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'", max_results=1)
    if not found:
        run = client.create_run(experiment_id, run_name=run_name, tags={**tags, RUN_KEY: run_key})
        return str(run.info.run_id)
    run_id = str(found[0].info.run_id)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    return run_id


def _latest_finished(client: Any, settings: Settings) -> str:
    query = f"attributes.status = 'FINISHED' AND tags.`{STOPPED}` != ''"
    experiment = _experiment_id(client, settings)
    found = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        raise TrackingError(f"tracking: no finished run in {tracking_uri(settings)}; start one with `coppice run`")
    return str(found[0].info.run_id)
