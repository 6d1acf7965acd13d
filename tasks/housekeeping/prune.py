"""Removes old runs: what only they need in the store, and what they keep in MLflow.

Nothing goes that a kept run's records name, that a registered version needs which is champion, candidate or may be
rolled back to, or that a run under way has made. The store is swept first and MLflow forgets last, so a prune that was
killed leaves runs that are made again when they are given again, and the next prune finishes the work.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline_lib.config import ConfigError, Settings, sqlite_file
from pipeline_lib.store.prune import (
    StoredEntry,
    files_below,
    freed_bytes,
    remove_entry,
    stored_entries,
)
from pipeline_lib.tracking import tracking_uri
from pipeline_lib.tracking.history.past_runs import PastRun, is_pipeline_run, past_runs
from pipeline_lib.tracking.history.removal import compact_database, half_removed, remove_runs, tracked_files
from pipeline_lib.tracking.history.run_folder import run_folder
from tasks.housekeeping.marks import entries_of_run, recording_runs
from tasks.runtime.prompts import PASSED

DAY_S = 86_400.0
ANNOUNCEMENTS = "announce"  # tiny, and without them a second run says again what was said
LOCKS, PRUNING = "locks", "prune"
CHECKED_BEFORE_S = 3600.0  # a run's prompts are measured before MLflow hears of it, while its servers start


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would go.

    Args:
        runs: the runs, the latest first.
        entries: of the store.
        leftovers: finished entries beside whose result lies work under way of a process that was killed.
        num_bytes: what the disk has more afterwards.
        kept_since: seconds since 1970, when the first run began that stays; 0 where all stay.
    """

    runs: tuple[PastRun, ...]
    entries: tuple[StoredEntry, ...]
    leftovers: tuple[StoredEntry, ...]
    num_bytes: int
    kept_since: float = 0.0


def plan_prune(settings: Settings, *, keep_runs: int, older_than_s: float = 0.0) -> PrunePlan:
    """What a prune would remove.

    Args:
        settings: a home with its own store and tracking database.
        keep_runs: how many finished runs stay, the latest ones; at least 1.
        older_than_s: seconds; runs that started later stay as well.

    Raises:
        ConfigError: store or database are shared with other homes.
    """
    _require_own(settings)
    now, runs = time.time(), past_runs(settings)
    old = {run.run_id for run in _old_runs(settings, runs, keep_runs) if now - run.started_s > older_than_s}
    kept = [run for run in runs if run.run_id not in old]
    entries = list(stored_entries(settings.store_root))
    recorders = recording_runs(entries)
    needed = {uri for run in kept for uri in entries_of_run(settings, run, recorders)}
    of_old = {uri for run in runs if run.run_id in old for uri in entries_of_run(settings, run, recorders)}
    young = min([now - DAY_S, *(run.started_s for run in kept if run.status != "FINISHED")])
    going = [
        entry
        for entry in entries
        if entry.uri not in needed
        and not entry.uri.startswith(f"{ANNOUNCEMENTS}/")
        and (entry.uri in of_old or entry.changed < young)
    ]
    left = {entry.uri for entry in entries} - {entry.uri for entry in going}
    leftovers = [entry for entry in entries if entry.uri in left and entry.is_finished and entry.partial.is_dir()]
    pruned = tuple(run for run in runs if run.run_id in old)
    folders = [entry.path for entry in going] + [entry.partial for entry in leftovers]
    folders += tracked_files(settings, [run_id for run in pruned for run_id in run.run_ids]).folders if pruned else ()
    kept_since = min((run.started_s for run in kept), default=0.0) if pruned else 0.0
    return PrunePlan(pruned, tuple(going), tuple(leftovers), freed_bytes(files_below(folders)), kept_since)


def prune(settings: Settings, plan: PrunePlan) -> None:
    """Removes what `plan` says; made within `nothing_else_running`."""
    for entry in plan.entries:
        remove_entry(entry.path)
    for entry in plan.leftovers:
        shutil.rmtree(entry.partial, ignore_errors=True)
    for run in plan.runs:
        remove_runs(settings, run.run_ids)
        shutil.rmtree(run_folder(settings.home, run.run_id), ignore_errors=True)
    if left := half_removed(settings):
        remove_runs(settings, left)
    _forget_checks(settings, plan.kept_since - CHECKED_BEFORE_S)
    compact_database(settings)


def _forget_checks(settings: Settings, before: float) -> None:
    """Drops what is remembered of prompts that no run has asked since `before`; a run that asks them measures again."""
    for file in (settings.home.resolve() / PASSED).glob("*"):
        if file.stat().st_mtime < before:
            file.unlink(missing_ok=True)


@contextmanager
def nothing_else_running(settings: Settings) -> Iterator[None]:
    """Keeps runs of this home from starting while the block runs.

    Raises:
        ConfigError: one goes on; what it needs is not on record yet.
    """
    folder = settings.home.resolve() / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{PRUNING}.lock"):
        if _any_held(folder):
            raise ConfigError("prune: a run goes on in this home, and what it needs is not on record yet; wait for it")
        yield


def _any_held(folder: Path) -> bool:
    return any(_is_held(file) for file in folder.glob("*.lock") if file.stem != PRUNING)


def _is_held(file: Path) -> bool:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _old_runs(settings: Settings, runs: Sequence[PastRun], keep_runs: int) -> list[PastRun]:
    """All runs of the loop that started before the latest finished ones; of those under way, only what was killed."""
    loops = [run for run in runs if is_pipeline_run(run)]
    finished = [run for run in loops if run.status == "FINISHED"]
    if len(finished) <= keep_runs:
        return []
    oldest = finished[:keep_runs][-1]
    before = [run for run in loops if run.started_s <= oldest.started_s and run not in finished[:keep_runs]]
    return [run for run in before if run.status != "RUNNING" or _was_killed(settings, run)]


def _was_killed(settings: Settings, run: PastRun) -> bool:
    """Whether a run from a terminal has left its lock; a worker's run has none, so it counts as going on."""
    return (settings.home.resolve() / LOCKS / f"{run.run_key}.lock").exists()


def _require_own(settings: Settings) -> None:
    database = sqlite_file(tracking_uri(settings))
    if settings.store is not None or database is None or database.parent != settings.home.resolve():
        raise ConfigError(
            "prune: works on a home's own store and database; where COPPICE_STORE or COPPICE_TRACKING_URI name others, "
            "somebody else may need what looks unused from here: unset both, or delete runs on MLflow's pages"
        )
