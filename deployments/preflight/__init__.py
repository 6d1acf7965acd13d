"""Checks before a run: what would stop it, and what it would cost."""
