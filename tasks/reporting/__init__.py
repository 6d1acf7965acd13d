"""What a run says of itself, gathered from what its stages left."""
