"""What fedsim shares with Flower: records, messages, and Flower's non-public parts in one file."""
