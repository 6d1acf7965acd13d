"""What is run where: presets, the `coppice` command and what it needs of its surroundings."""
