"""Records, messages and logs shared with Flower; the non-public parts of Flower are in one module."""
