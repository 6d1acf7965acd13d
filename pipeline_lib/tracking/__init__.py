"""What a run leaves in MLflow, and how it is read back.

client.py            the way to MLflow, and the only import of it: address, clients, experiment
database.py          a look into its database, where that is a file, without loading it
outage.py            a server that does not answer, told from one that refuses; errors in one line
links.py             files of the store as artifacts without a second copy
tracked_run.py       one MLflow run, written so that writing twice equals writing once
run_tracker.py       a pipeline run: its parent run, a child run per iteration, its registered adapters
reading.py           finished runs read back
run_list.py          which runs there are, and what is known of one
run_folder.py        what is kept of a run below the home
registered_model.py  a preset's registered model and its champion
tree_traces.py       search trees as traces: which nodes
traces.py            those traces on the server
history/             all runs with what they put on record, and how they leave for good
provenance.py        commit, versions and hardware as tags
"""

from pipeline_lib.tracking.client import check_tracking_server, page_url, tracking_uri
from pipeline_lib.tracking.outage import TrackingError, TrackingOutage
from pipeline_lib.tracking.reading import has_finished, load_run, load_text
from pipeline_lib.tracking.registered_model import (
    Champion,
    download_champion,
    model_name,
    open_registry,
    registered_champion,
    registered_version,
)
from pipeline_lib.tracking.run_tracker import IterationContents, Tracker

__all__ = [
    "Champion",
    "IterationContents",
    "Tracker",
    "TrackingError",
    "TrackingOutage",
    "check_tracking_server",
    "download_champion",
    "has_finished",
    "load_run",
    "load_text",
    "model_name",
    "open_registry",
    "page_url",
    "registered_champion",
    "registered_version",
    "tracking_uri",
]
