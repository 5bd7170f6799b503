"""Data at rest and its transformations: logs, windows, masks, tokens, rounds, tracking."""
