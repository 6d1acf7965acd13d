"""Subcommands that run no loop: grading of files, benchmarks, the building of the embedded model."""
