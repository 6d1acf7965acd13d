"""What a run takes on the disk."""

from __future__ import annotations

from pipeline_lib.config import Settings
from pipeline_lib.store.prune import files_below, stored_entries, used_bytes
from pipeline_lib.tracking.history.past_runs import past_runs
from pipeline_lib.tracking.history.removal import tracked_files
from tasks.housekeeping.marks import entries_of_run, recording_runs


def bytes_of_run(settings: Settings, run_id: str) -> int:
    """Bytes of the entries that a run's records name and of what it keeps in MLflow; a file with two names counts once.

    What several runs share counts for each of them.

    Args:
        settings: where store and tracking database are.
        run_id: of the parent run in MLflow; 0 for one that is not there.
    """
    return bytes_of_runs(settings).get(run_id, 0)


def bytes_of_runs(settings: Settings) -> dict[str, int]:
    """`bytes_of_run` of every run, by id: the store is looked through once."""
    entries = {entry.uri: entry for entry in stored_entries(settings.store_root)}
    recorders = recording_runs(list(entries.values()))
    found = {}
    for run in past_runs(settings):
        uris = entries_of_run(settings, run, recorders) & entries.keys()
        folders = [*(entries[uri].path for uri in uris), *tracked_files(settings, run.run_ids).folders]
        found[run.run_id] = used_bytes(files_below(folders))
    return found
