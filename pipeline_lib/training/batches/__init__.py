"""From scored trees to packed batches; NumPy only."""
