"""Statistics of repeated experiments: paired tests, mean ranks over conditions, and censored times."""
