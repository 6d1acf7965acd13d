"""Where results lie: content-addressed entries below a folder, shared through an object store if need be."""

from pipeline_lib.store.files import canonical_json, read_json, write_json, write_parquet
from pipeline_lib.store.integrity import MANIFEST, OBSERVATIONS
from pipeline_lib.store.local import PARTIAL, Entry, Store, StoreError

__all__ = [
    "MANIFEST",
    "OBSERVATIONS",
    "PARTIAL",
    "Entry",
    "Store",
    "StoreError",
    "canonical_json",
    "read_json",
    "write_json",
    "write_parquet",
]
