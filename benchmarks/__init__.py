"""Measurements of Atalaia against what a user would otherwise run; `python -m benchmarks` runs them all."""

import os

# As in Atalaia's own processes, and before anything imports torch: waiting threads spin for a short while only.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
