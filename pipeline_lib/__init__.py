"""The science of Coppice: search, scoring, audit, training, evaluation and the gate.

Usable from a notebook: nothing here imports Prefect, and only ``tracking`` imports MLflow.
"""
