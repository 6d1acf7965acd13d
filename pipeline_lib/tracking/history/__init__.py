"""The runs of the past: what MLflow knows of them, and how they leave it."""
