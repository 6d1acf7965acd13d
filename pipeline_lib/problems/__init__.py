"""Datasets as problems: sources, formats, which problems are drawn, and the generated tiny worlds."""
