"""The `coppice` command: `app` lists the subcommands, each in the file of its name or family."""
