"""The registered model of a preset: a version per trained adapter, and which of them is `candidate` and `champion`.

One idea: the registry tells its own story. A version says where it came from and what it scored, the model keeps
every move of `champion`, so a rollback needs nothing but the registry. Every step may be done twice: a version is
found by its policy, and what was decided about it is read, not decided again. The MLflow client is handed in.

Two processes that move `champion` at the same moment could lose one line of the history; the alias is MLflow's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline_lib.metrics import is_headline, record_metrics
from pipeline_lib.notes import model_note, version_note
from pipeline_lib.promotion import (
    PROMOTED,
    ROLLED_BACK,
    Event,
    Standing,
    champions_before,
    decide_promotion,
    read_events,
    validation_report,
    write_events,
)
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Promotion

POLICY_ID = "coppice.policy_id"
CHAMPION, CANDIDATE = "champion", "candidate"
GATE, PROMOTION, HISTORY = "coppice.gate", "coppice.promotion", "coppice.champions"
CHOSEN, KEPT_BACK = "chosen", "kept back"


class RegistryError(ValueError):
    """The registry cannot do what was asked; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class LoggedAdapter:
    """An adapter as MLflow keeps it, before it has a version.

    Args:
        source: where its files lie.
        model_id: of the logged model.
        run_id: of the iteration that made it.
        parent: the policy it was trained from.
        tags: of its origin: flow run, commit.
    """

    source: str
    model_id: str
    run_id: str
    parent: PolicyRef
    tags: Mapping[str, str]


class Registry:
    """The versions of one registered model.

    Args:
        client: an MLflow client with its own tracking and registry URI.
        name: of the model, ``coppice-tiny``.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self.name = name

    def version_of(self, policy_id: str) -> str | None:
        """The version that holds a policy; None when it is not registered."""
        found = self._client.search_model_versions(f"name = '{self.name}' AND tags.`{POLICY_ID}` = '{policy_id}'")
        return str(found[0].version) if found else None

    def register(self, record: IterationRecord, adapter: LoggedAdapter) -> str:
        """Makes the adapter a version with its metrics and origin, or finds the version that it is; a candidate now."""
        version = self.version_of(record.policy.policy_id)
        if version is None:
            if self._model() is None:
                self._client.create_registered_model(self.name, description=model_note(self.name, []))
            parent = self.version_of(adapter.parent.policy_id) if adapter.parent.adapter_uri else None
            tags = {**adapter.tags, **_tags(record, adapter.parent, parent)}
            made = self._client.create_model_version(
                self.name,
                adapter.source,
                adapter.run_id,
                tags=tags,
                description=version_note(record, parent, tags),
                model_id=adapter.model_id,
            )
            version = str(made.version)
        self._client.set_registered_model_alias(self.name, CANDIDATE, version)
        return version

    def settle(self, records: Sequence[IterationRecord], decision: GateDecision) -> Promotion:
        """Writes the gate's word on a run's versions, and moves `champion` to the chosen one if that is better.

        The chosen version becomes `candidate`. One that was judged before keeps its verdict.
        """
        versions = {tags.get(POLICY_ID): version for version, tags in self._versions().items()}
        for record in records:
            version = versions.get(record.policy.policy_id) if record.train else None
            if version is not None:
                word = CHOSEN if record.index == decision.champion else f"not {CHOSEN}: {_winner(decision)} was better"
                self._set_tags(version, {GATE: word})
        chosen = records[decision.champion]
        version = versions.get(chosen.policy.policy_id) if chosen.train else None
        if version is None:
            return Promotion(
                promoted=False, previous=self.champion(), reason="the base stayed best; nothing to promote"
            )
        self._client.set_registered_model_alias(self.name, CANDIDATE, version)
        return self._judge(version, chosen)

    def champion(self) -> str | None:
        """The version that the alias `champion` points at."""
        return self._alias(CHAMPION)

    def promote(self, version: str | None = None, *, force: str | None = None) -> Promotion:
        """Moves `champion` by hand, to `version` or else to the candidate.

        Args:
            version: one that a run's gate chose and that was not rolled back, unless `force` is given.
            force: why another one shall be it; recorded.

        Raises:
            RegistryError: there is no such version, or the gate did not choose it and nobody forced it.
        """
        version = version or self._alias(CANDIDATE)
        tags = self._tags_of(version)
        assert version is not None
        objection = _objection(version, tags)
        if objection and force is None:
            raise RegistryError(
                f"registry: {self.name} {objection}; --force --reason TEXT promotes it all the same, on record"
            )
        previous = self.champion()
        if previous == version:
            return Promotion(
                promoted=False, version=version, previous=previous, reason=f"version {version} is champion already"
            )
        reason = f"by hand, against the gate ({objection}): {force}" if objection else "by hand"
        if force is not None and not objection:
            reason = f"by hand: {force}"
        self._move(Event(at=_now(), action=PROMOTED, version=version, previous=previous, reason=reason))
        return Promotion(promoted=True, version=version, previous=previous, reason=reason)

    def roll_back(self, reason: str) -> Promotion:
        """Points `champion` back at the champion before.

        Args:
            reason: recorded on the version that goes.

        Raises:
            RegistryError: there is no champion, or none before it.
        """
        current = self.champion()
        if current is None:
            raise RegistryError(f"registry: {self.name} has no champion; `coppice promote` names one")
        known = self._versions()
        before = [version for version in champions_before(self._events(), current) if version in known]
        if not before:
            raise RegistryError(
                f"registry: {self.name} had no champion before version {current}; "
                "`coppice promote --version N` names another one"
            )
        self._move(Event(at=_now(), action=ROLLED_BACK, version=before[-1], previous=current, reason=reason))
        return Promotion(promoted=True, version=before[-1], previous=current, reason=reason)

    def _judge(self, version: str, record: IterationRecord) -> Promotion:
        """The gate's promotion: decided once, then read from the version's tag."""
        verdict, _, reason = self._tags_of(version).get(PROMOTION, "").partition(": ")
        current = self.champion()
        if verdict:
            return Promotion(promoted=verdict == PROMOTED, version=version, previous=current, reason=reason)
        events = self._events()
        if current == version and events and events[-1].version == version:
            self._move(events[-1])  # killed after the alias, before the tag
            return Promotion(promoted=True, version=version, previous=events[-1].previous, reason=events[-1].reason)
        report = validation_report(record)
        assert report is not None  # the gate chose it
        promotion = decide_promotion(Standing.of(version, report), self._standing(current))
        if promotion.promoted:
            event = Event(at=_now(), action=PROMOTED, version=version, previous=current, reason=promotion.reason)
            self._move(event)
        else:
            self._set_tags(version, {PROMOTION: f"{KEPT_BACK}: {promotion.reason}"})
        return promotion

    def _move(self, event: Event) -> None:
        """History, alias, tags, in this order: killed in between, a second call finds the first line and goes on."""
        events = self._events()
        same = {"action", "version", "previous", "reason"}
        if not events or events[-1].model_dump(include=same) != event.model_dump(include=same):
            events.append(event)
            self._client.set_registered_model_tag(self.name, HISTORY, write_events(events))
        self._client.set_registered_model_alias(self.name, CHAMPION, event.version)
        if event.action == ROLLED_BACK and event.previous is not None:
            self._set_tags(event.previous, {PROMOTION: f"{ROLLED_BACK}: {event.at}, {event.reason}"})
        else:
            self._set_tags(event.version, {PROMOTION: f"{PROMOTED}: {event.reason}"})
        self._client.update_registered_model(self.name, description=model_note(self.name, events))

    def _standing(self, version: str | None) -> Standing | None:
        if version is None:
            return None
        tags = self._tags_of(version)
        return Standing(
            version=version,
            dataset=tags.get("coppice.validation.dataset", ""),
            accuracy=float(tags.get("coppice.validation.accuracy", "nan")),
            num_problems=int(tags.get("coppice.validation.num_problems", "0")),
            yardstick=tags.get("coppice.validation.yardstick", ""),
        )

    def _versions(self) -> dict[str, dict[str, str]]:
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return {str(version.version): dict(version.tags) for version in found}

    def _tags_of(self, version: str | None) -> dict[str, str]:
        versions = self._versions()
        if version not in versions:
            known = ", ".join(sorted(versions, key=int)) or "none; `coppice run` makes them"
            which = f"version {version}" if version else f"{CANDIDATE}"
            raise RegistryError(f"registry: {self.name} has no {which}; versions: {known}")
        return versions[version]

    def _set_tags(self, version: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, version, name, value)

    def _events(self) -> list[Event]:
        model = self._model()
        return read_events(model.tags, HISTORY) if model is not None else []

    def _alias(self, name: str) -> str | None:
        model = self._model()
        version = model.aliases.get(name) if model is not None else None
        return str(version) if version is not None else None

    def _model(self) -> Any:
        found = self._client.search_registered_models(f"name = '{self.name}'")
        return found[0] if found else None


def _tags(record: IterationRecord, parent: PolicyRef, parent_version: str | None) -> dict[str, str]:
    """Origin and scores of a version as flat texts."""
    tags = {
        POLICY_ID: record.policy.policy_id,
        "coppice.iteration": str(record.index),
        "coppice.parent_version": parent_version or "base",
        "coppice.parent_policy_id": parent.policy_id,
        "coppice.base_model": record.policy.base_model,
    }
    if record.policy.revision is not None:
        tags["coppice.base_revision"] = record.policy.revision
    tags |= {f"digest/{name}": ref.sha256 for name, ref in record.refs.items()}
    tags |= {
        f"digest/{report.split}/{report.dataset}": report.problems.sha256
        for report in record.evaluations
        if report.problems is not None
    }
    report = validation_report(record)
    if report is not None:
        names = ("dataset", "accuracy", "num_problems", "yardstick")
        tags |= {f"coppice.validation.{name}": str(getattr(report, name)) for name in names}
    shown = {name: value for name, value in record_metrics(record).items() if _is_told(name)}
    return tags | {name: f"{value:.6g}" for name, value in shown.items()}


def _is_told(name: str) -> bool:
    """Accuracies with their intervals, KL, and what the scores were worth; not how fast the machine was."""
    return is_headline(name.removesuffix("_low").removesuffix("_high")) and not name.startswith(("time/", "search/"))


def _objection(version: str, tags: Mapping[str, str]) -> str:
    """Why the gate does not stand behind a version; empty when it does."""
    word = tags.get(GATE, "")
    if not word:
        return f"version {version} has no word from the gate: its run did not finish"
    if word != CHOSEN:
        return f"version {version} was {word}"
    judged = tags.get(PROMOTION, "")
    return f"version {version} was {judged}" if judged.startswith(ROLLED_BACK) else ""


def _winner(decision: GateDecision) -> str:
    return f"iteration {decision.champion}" if decision.champion else "the base"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
