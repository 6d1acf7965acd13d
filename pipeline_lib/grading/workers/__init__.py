"""Processes that grade what cannot be decided at once: capped, killable, replaced."""
