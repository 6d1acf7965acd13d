"""Datasets as problems: formats, sources, sampling, and the generated tiny worlds."""
