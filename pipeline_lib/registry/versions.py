"""The registered model of a preset: a version per trained adapter, and which of them is `candidate` and `champion`.

One idea: the registry is enough by itself. A version says where it came from and what it scored, the model keeps
every move of `champion`, so a rollback needs nothing but the registry. Every step may be done twice: a version is
found by its policy, and what was decided about it is read, not decided again. The MLflow client is handed in.

Runs may end at the same moment. Where the database is this machine's, one after another moves `champion` (`guard`);
behind a server nothing keeps them apart, so whoever has moved it looks once more at what others promoted meanwhile,
and the best of them has it in the end. One line of the history can then be lost; the alias is MLflow's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline_lib.registry.lineage import POLICY_ID, score_from_tags
from pipeline_lib.registry.model_note import model_note
from pipeline_lib.registry.promotion import (
    PROMOTED,
    ROLLED_BACK,
    ChampionMove,
    ValidationScore,
    champions_before,
    decide_promotion,
    read_moves,
    validation_report,
    write_moves,
)
from pipeline_lib.types import GateDecision, IterationRecord, Promotion

CHAMPION, CANDIDATE = "champion", "candidate"
GATE, PROMOTION, HISTORY = "coppice.gate", "coppice.promotion", "coppice.champions"
CHOSEN, KEPT_BACK = "chosen", "kept back"


class RegistryError(ValueError):
    """The registry cannot do what was asked; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class LoggedAdapter:
    """An adapter as MLflow keeps it, before it has a version.

    Args:
        source: URI of the folder that holds its files.
        model_id: MLflow's id of the logged model.
        run_id: id of the MLflow run of the iteration that made it.
        tags: what the version will carry: `lineage.version_tags`, and its origin, flow run and commit.
        description: Markdown that MLflow's page shows of the version.
    """

    source: str
    model_id: str
    run_id: str
    tags: Mapping[str, str]
    description: str


class Registry:
    """The versions of one registered model.

    Args:
        client: an MLflow client with its own tracking and registry URI.
        name: the registered model's, ``coppice-tiny``.
        guard: makes a context in which no other process of this machine moves an alias; by default none is kept out.
    """

    def __init__(self, client: Any, name: str, guard: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._client, self._guard = client, guard
        self.name = name

    def version_of(self, policy_id: str) -> str | None:
        """The version that holds a policy; None when it is not registered."""
        found = self._client.search_model_versions(f"name = '{self.name}' AND tags.`{POLICY_ID}` = '{policy_id}'")
        return str(found[0].version) if found else None

    def register(self, policy_id: str, adapter: LoggedAdapter) -> str:
        """The adapter's version, made with its metrics and origin unless it is there; it becomes `candidate`."""
        with self._guard():
            return self._register(policy_id, adapter)

    def _register(self, policy_id: str, adapter: LoggedAdapter) -> str:
        version = self.version_of(policy_id)
        if version is None:
            self._ensure_model()
            made = self._client.create_model_version(
                self.name,
                adapter.source,
                adapter.run_id,
                tags=dict(adapter.tags),
                description=adapter.description,
                model_id=adapter.model_id,
            )
            version = str(made.version)
        self._client.set_registered_model_alias(self.name, CANDIDATE, version)
        return version

    def apply_gate_decision(self, records: Sequence[IterationRecord], decision: GateDecision) -> Promotion:
        """Tags a run's versions with the gate's decision, and moves `champion` to the chosen one if that is better.

        The chosen version becomes `candidate`. A promotion that was decided before is not decided again.

        Args:
            records: the run's iterations, the base first.
            decision: the gate's last; its champion is the chosen iteration.
        """
        with self._guard():
            return self._apply_gate_decision(records, decision)

    def _apply_gate_decision(self, records: Sequence[IterationRecord], decision: GateDecision) -> Promotion:
        versions = {tags.get(POLICY_ID): version for version, tags in self._versions().items()}
        for record in records:
            version = versions.get(record.policy.policy_id) if record.train else None
            if version is not None:
                is_chosen = record.index == decision.champion
                verdict = CHOSEN if is_chosen else f"not {CHOSEN}: {_winner(decision)} was better"
                self._set_tags(version, {GATE: verdict})
        chosen = records[decision.champion]
        version = versions.get(chosen.policy.policy_id) if chosen.train else None
        if version is None:
            return Promotion(
                promoted=False, previous=self.champion(), reason="the base stayed best; nothing to promote"
            )
        self._client.set_registered_model_alias(self.name, CANDIDATE, version)
        return self._promote_if_better(version, chosen)

    def champion(self) -> str | None:
        """The version that the alias `champion` points at."""
        return self._alias(CHAMPION)

    def needed(self) -> set[str]:
        """Versions that an alias names, and those that a rollback can go back to: their files have to stay."""
        model, current = self._model(), self.champion()
        aliased = {str(version) for version in model.aliases.values()} if model is not None else set()
        return aliased | set(champions_before(self._moves(), current))

    def promote(self, version: str | None = None, *, reason: str = "", force: bool = False) -> Promotion:
        """Moves `champion` by hand, to `version` or else to the candidate.

        Args:
            version: one that a run's gate chose and that was not rolled back, unless `force`.
            reason: why, for the record; may be empty.
            force: promotes it also against the gate's decision.

        Raises:
            RegistryError: there is no such version, or the gate did not choose it and nobody forced it.
        """
        with self._guard():
            return self._promote(version, reason, force)

    def _promote(self, version: str | None, reason: str, force: bool) -> Promotion:
        version, tags = self._find(version)
        objection, previous = _objection(version, tags), self.champion()
        if previous == version:
            already = f"version {version} is champion already"
            return Promotion(promoted=False, version=version, previous=previous, reason=already)
        if objection and not force:
            raise RegistryError(
                f"registry: {self.name} {objection}; --force --reason TEXT promotes it all the same, on record"
            )
        against = f", against the gate ({objection})" if objection else ""
        why = f"by hand{against}" + (f": {reason}" if reason else "")
        self._move_champion(ChampionMove(at=_now(), action=PROMOTED, version=version, previous=previous, reason=why))
        return Promotion(promoted=True, version=version, previous=previous, reason=why)

    def roll_back(self, reason: str) -> Promotion:
        """Points `champion` back at the champion before.

        Args:
            reason: why; becomes a tag of the version that stops being champion.

        Raises:
            RegistryError: there is no champion, or none before it.
        """
        with self._guard():
            return self._roll_back(reason)

    def _roll_back(self, reason: str) -> Promotion:
        current = self.champion()
        if current is None:
            raise RegistryError(f"registry: {self.name} has no champion; `coppice promote` names one")
        registered = self._versions()
        before = [version for version in champions_before(self._moves(), current) if version in registered]
        if not before:
            raise RegistryError(
                f"registry: {self.name} had no champion before version {current}; "
                "`coppice promote --version N` names another one"
            )
        self._move_champion(
            ChampionMove(at=_now(), action=ROLLED_BACK, version=before[-1], previous=current, reason=reason)
        )
        return Promotion(promoted=True, version=before[-1], previous=current, reason=reason)

    def _promote_if_better(self, version: str, record: IterationRecord) -> Promotion:
        """Whether the gate's choice becomes champion: decided once, then read from the version's tag."""
        known = self._promoted()  # before the alias is read: what is promoted from here on is judged in the end
        verdict, _, reason = self._find(version)[1].get(PROMOTION, "").partition(": ")
        current, moves = self.champion(), self._moves()
        if verdict == PROMOTED:
            return _promoted_then(version, reason, moves, current)
        if verdict:
            return Promotion(promoted=False, version=version, previous=current, reason=reason)
        if current == version and moves and moves[-1].version == version:
            self._move_champion(moves[-1])  # killed after the alias, before the tag
            return Promotion(promoted=True, version=version, previous=moves[-1].previous, reason=moves[-1].reason)
        report = validation_report(record)
        assert report is not None  # the gate chose it
        score = ValidationScore.of(version, report)
        promotion = decide_promotion(score, None if current is None else self._score(current))
        if not promotion.promoted:
            return self._keep_back(promotion)
        self._move_champion(
            ChampionMove(at=_now(), action=PROMOTED, version=version, previous=current, reason=promotion.reason)
        )
        return self._judge_again(score, promotion, known)

    def _judge_again(self, score: ValidationScore, promotion: Promotion, known: Collection[str]) -> Promotion:
        """Gives `champion` to the best of this version and those that others promoted since it was judged.

        Each process tags its version before it looks here, so of two that move the alias at once the one that looks
        last sees the other's version, and both come to the same.

        Args:
            score: of the version that has just become champion.
            promotion: how it was judged.
            known: versions that were promoted before that.
        """
        contenders = [score, *(self._score(version) for version in self._promoted() - {*known, score.version})]
        current = self.champion()
        best = next((contender for contender in contenders if contender.version == current), None)
        if best is None:  # somebody moved it by hand meanwhile
            return promotion
        for contender in contenders:
            if (verdict := decide_promotion(contender, best)).promoted:
                best, reason = contender, verdict.reason
        if best.version != current:
            self._move_champion(
                ChampionMove(at=_now(), action=PROMOTED, version=best.version, previous=current, reason=reason)
            )
        return promotion if best == score else self._keep_back(decide_promotion(score, best))

    def _keep_back(self, promotion: Promotion) -> Promotion:
        assert promotion.version is not None  # of a version that was judged
        self._set_tags(promotion.version, {PROMOTION: f"{KEPT_BACK}: {promotion.reason}"})
        return promotion

    def _move_champion(self, move: ChampionMove) -> None:
        """History, alias, tags, in this order: killed in between, a second call goes on from the move on record."""
        moves = self._moves()
        same = {"action", "version", "previous", "reason"}
        if not moves or moves[-1].model_dump(include=same) != move.model_dump(include=same):
            moves.append(move)
            self._client.set_registered_model_tag(self.name, HISTORY, write_moves(moves))
        self._client.set_registered_model_alias(self.name, CHAMPION, move.version)
        if move.action == ROLLED_BACK and move.previous is not None:
            self._set_tags(move.previous, {PROMOTION: f"{ROLLED_BACK}: {move.at}, {move.reason}"})
        else:
            self._set_tags(move.version, {PROMOTION: f"{PROMOTED}: {move.reason}"})
        self._client.update_registered_model(self.name, description=model_note(self.name, moves))

    def _score(self, version: str) -> ValidationScore:
        return score_from_tags(version, self._find(version)[1])

    def _promoted(self) -> set[str]:
        """Versions that became champion and were not rolled back."""
        return {version for version, tags in self._versions().items() if tags.get(PROMOTION, "").startswith(PROMOTED)}

    def _versions(self) -> dict[str, dict[str, str]]:
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return {str(version.version): dict(version.tags) for version in found}

    def _find(self, version: str | None) -> tuple[str, dict[str, str]]:
        """A version, the candidate if None, and its tags."""
        versions, wanted = self._versions(), version or self._alias(CANDIDATE)
        if wanted is None or wanted not in versions:
            known = ", ".join(sorted(versions, key=int)) or "none; `coppice run` makes them"
            named = f"version {wanted}" if wanted else CANDIDATE
            raise RegistryError(f"registry: {self.name} has no {named}; versions: {known}")
        return wanted, versions[wanted]

    def _set_tags(self, version: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, version, name, value)

    def _moves(self) -> list[ChampionMove]:
        model = self._model()
        return read_moves(model.tags, HISTORY) if model is not None else []

    def _alias(self, name: str) -> str | None:
        model = self._model()
        version = model.aliases.get(name) if model is not None else None
        return str(version) if version is not None else None

    def _ensure_model(self) -> None:
        if self._model() is not None:
            return
        try:
            self._client.create_registered_model(self.name, description=model_note(self.name, []))
        except Exception:  # MLflow's own, where another run has made it in this moment
            if self._model() is None:
                raise

    def _model(self) -> Any:
        found = self._client.search_registered_models(f"name = '{self.name}'")
        return found[0] if found else None


def _promoted_then(version: str, reason: str, moves: Sequence[ChampionMove], current: str | None) -> Promotion:
    """A promotion that is on record: what it replaced then, and what became of it if it is champion no longer."""
    replaced = [move.previous for move in moves if (move.action, move.version) == (PROMOTED, version)]
    if current != version:
        reason += f"; since then version {current} became champion" if current else "; since then the alias was removed"
    return Promotion(promoted=True, version=version, previous=replaced[-1] if replaced else None, reason=reason)


def _objection(version: str, tags: Mapping[str, str]) -> str:
    """Why a version should not be promoted: its gate did not choose it, or it was rolled back; empty when it may be."""
    verdict = tags.get(GATE, "")
    if not verdict:
        return f"version {version} has no word from the gate: its run did not finish"
    if verdict != CHOSEN:
        return f"version {version} was {verdict}"
    promotion = tags.get(PROMOTION, "")
    return f"version {version} was {promotion}" if promotion.startswith(ROLLED_BACK) else ""


def _winner(decision: GateDecision) -> str:
    return f"iteration {decision.champion}" if decision.champion else "the base"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
