"""The algorithms as a reader would tell them; one public flow per file."""
