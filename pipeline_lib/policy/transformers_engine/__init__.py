"""The engine on transformers: continuous refill, one forward pass per step, a key-value cache of our own."""
