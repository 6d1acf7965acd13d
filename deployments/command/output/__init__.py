"""What the command prints and writes: progress, what a run ends with, ``--summary``, the lines of `coppice check`."""
