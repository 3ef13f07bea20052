"""Engines: where clients train and evaluate."""
