"""What differs between the architectures that are trained: layers, output layers, and what cannot be packed."""
