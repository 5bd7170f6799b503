"""Measurements of Atalaia against what a user would otherwise run; `python -m benchmarks` runs those that need no more
than an archive of logs."""
