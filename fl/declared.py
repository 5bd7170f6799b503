"""What a site may send: for each kind of message the numbers by name, and the arrays of the adapter. Nothing else.

The same table is shown to a site's operator before the first use, and every reply is held against it before it leaves.
"""

import math
from collections.abc import Mapping

from fl.errors import FederationError
from fl.exchange import Arrays

ADMIT, ADAPTER, TRAIN, JUDGE, DONE = "query.rules", "query.adapter", "train", "evaluate", "query.done"

_TRAINING = {
    "partition": "the site's number",
    "round": "round that was trained",
    "examples": "training windows",
    "tokens": "tokens trained on",
    "computed_tokens": "tokens computed, shared beginnings counted once",
    "steps": "optimizer steps",
    "loss": "mean loss of the training, nats a token",
    "seconds": "duration of the training",
    "peak_memory_mb": "most memory used",
}
_JUDGING = {
    "partition": "the site's number",
    "calibration_windows": "calibration windows",
    "loss": "mean surprise of the calibration windows, nats a token",
    "surprise_50": "median of the calibration windows' mean surprise of a token, nats",
    "surprise_90": "their 90 % quantile",
    "surprise_99": "their 99 % quantile",
    "threshold": "the site's label-free threshold",
    "held_out_windows": "windows that were neither trained nor calibrated on",
    "flagged_windows": "how many of them lie above the threshold",
    "alerts": "alerts in the site's logs; -1 before the last round",
    "seconds": "duration of the judging",
}
NUMBERS: dict[str, dict[str, str]] = {
    ADMIT: {
        "partition": "the site's number",
        "examples": "training windows",
        "calibration_windows": "calibration windows",
        "held_out_windows": "windows that are neither trained nor calibrated on",
    },
    ADAPTER: {},
    TRAIN: _TRAINING,
    JUDGE: _JUDGING,
    DONE: {},
}
"""The numbers of each kind of reply, with what they mean."""
ONLY_SOMETIMES: dict[str, dict[str, str]] = {
    TRAIN: {"unclipped": "under adaptive clipping: whether the update was within the clipping norm"},
}
"""Numbers that a kind of reply holds under some rules of the federation only."""
COUNTS = {
    "partition",
    "round",
    "examples",
    "tokens",
    "computed_tokens",
    "steps",
    "calibration_windows",
    "held_out_windows",
    "flagged_windows",
    "alerts",
    "unclipped",
}
"""Those that are whole: from 0, `alerts` from -1."""


def check_numbers(kind: str, numbers: Mapping[str, object]) -> None:
    """Raise FederationError for a number that is not declared, missing, not finite, or no count where it should be."""
    if kind not in NUMBERS:
        raise FederationError(f"A site sends no reply of the kind {kind!r:.40}.")
    if differing := sorted((set(numbers) - set(ONLY_SOMETIMES.get(kind, ()))) ^ set(NUMBERS[kind])):
        raise FederationError(f"A reply to {kind} has other numbers than declared ({', '.join(differing)[:200]}).")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FederationError(f"A reply to {kind} has {name} as {type(value).__name__}, not as a finite number.")
        if name in COUNTS and (not isinstance(value, int) or value < (-1 if name == "alerts" else 0)):
            raise FederationError(f"A reply to {kind} has {name} as {value!r:.40}, which is no count.")


def check_arrays(kind: str, arrays: Arrays, expected: Arrays) -> None:
    """Raise FederationError for other arrays than `expected`: names, shapes and types."""
    if differing := sorted(arrays.keys() ^ expected.keys()):
        raise FederationError(f"A reply to {kind} holds other arrays than declared: {differing[0][:120]}.")
    for name, array in arrays.items():
        if (array.shape, array.dtype) != (expected[name].shape, expected[name].dtype):
            raise FederationError(f"A reply to {kind} holds an array that is not the adapter's: {name[:120]}.")
