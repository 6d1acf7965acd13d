"""From scored trees to the next policy: examples, packing, objectives and one loop for all of them.

Import the modules themselves: those of `batches` need NumPy only, the rest torch.
"""
