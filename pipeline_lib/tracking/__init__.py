"""What a run leaves in MLflow, and how it is read back."""

from pipeline_lib.tracking.champion import Champion, download_champion, model_name, open_registry, registered_champion
from pipeline_lib.tracking.client import page_url, reach, tracking_uri
from pipeline_lib.tracking.outage import TrackingError, TrackingOutage
from pipeline_lib.tracking.reading import has_finished, load_run, load_text
from pipeline_lib.tracking.tracker import Contents, Tracker

__all__ = [
    "Champion",
    "Contents",
    "Tracker",
    "TrackingError",
    "TrackingOutage",
    "download_champion",
    "has_finished",
    "load_run",
    "load_text",
    "model_name",
    "open_registry",
    "page_url",
    "reach",
    "registered_champion",
    "tracking_uri",
]
