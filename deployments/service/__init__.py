"""What keeps running: servers, the worker, alerts."""
