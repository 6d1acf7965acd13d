"""The `coppice` command, one file per family of subcommands."""
