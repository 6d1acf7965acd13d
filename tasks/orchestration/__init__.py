"""Prefect's side of the stages, loaded once a stage runs: keys, and what the store holds, are known without it."""
