"""Explanation: what a model has learned, and what its predictions depend on."""
