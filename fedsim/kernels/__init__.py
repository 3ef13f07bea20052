"""The local training loop."""
