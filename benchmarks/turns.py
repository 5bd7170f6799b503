"""Ways of doing the same in turns, so that whatever else the machine does slows all of them alike."""

import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

Way = Callable[[int], float]
"""One repetition (given its number) of one way; returns its seconds."""


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(ways: Mapping[str, Way], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repetition of each way. Every other repetition goes through the ways backwards."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            times[name].append(ways[name](repeat))
            # A long run that is cut short leaves at least these lines.
            print(
                f"  {name}, repetition {repeat + 1} of {repeats}: {times[name][-1]:.3f} s", file=sys.stderr, flush=True
            )
    return times


def compared(times: Mapping[str, list[float]], ours: str = "atalaia") -> dict[str, Any]:
    """Every time, the medians, and how many times longer than `ours` each other way takes, by the medians."""
    medians = {name: median(values) for name, values in times.items()}
    return {
        "seconds": {name: [round(value, 4) for value in values] for name, values in times.items()},
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "times_longer": {name: round(value / medians[ours], 2) for name, value in medians.items() if name != ours},
    }
