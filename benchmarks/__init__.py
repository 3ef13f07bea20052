"""Benchmarks of speed, memory and scale: ``python -m benchmarks``."""
