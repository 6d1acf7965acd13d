"""From scored trees to the next policy: examples, packing, objectives and one loop for all of them.

Import the modules themselves: `examples`, `packing` and `batching` need numpy only, the rest torch.
"""
