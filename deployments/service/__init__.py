"""What keeps running after the command has ended: servers and the worker; and alerts about runs."""
