"""Short programs to read first; each runs as ``python -m deployments.examples.NAME``."""
