"""What can be known about a run before it costs a GPU hour."""
