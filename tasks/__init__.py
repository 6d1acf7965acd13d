"""One thin Prefect task per stage: open, one library call, save, return a reference."""
