"""Subcommands about what runs left behind: reports, models and champions."""
