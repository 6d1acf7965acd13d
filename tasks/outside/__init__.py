"""Stages of the outside baselines: other projects' trainers, measured as a run's iterations are."""
