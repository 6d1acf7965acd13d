"""A policy as files that other programs load."""
