"""Speed, memory and scale, measured: ``python -m benchmarks``."""
