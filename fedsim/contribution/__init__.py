"""Contribution of clients: retraining without them, Shapley values, and unlearning."""
