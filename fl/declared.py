"""What a site may send: for each kind of message the numbers by name, and the arrays of the adapter. Nothing else.

The same table is shown to a site's operator before the first use, and every reply is held against it before it leaves.
"""

import math
from collections.abc import Mapping

from fl.errors import FederationError
from fl.exchange import UPDATE, Arrays

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
WITH_ARRAYS = (ADAPTER, TRAIN)
"""The kinds of reply that hold the adapter's arrays."""


def check_numbers(kind: str, numbers: Mapping[str, object]) -> None:
    """Raise FederationError for a number that is not declared, missing, or no finite number."""
    if kind not in NUMBERS:
        raise FederationError(f"A site sends no reply of the kind {kind!r:.40}.")
    if differing := sorted((set(numbers) - set(ONLY_SOMETIMES.get(kind, ()))) ^ set(NUMBERS[kind])):
        raise FederationError(f"A reply to {kind} has other numbers than declared ({', '.join(differing)[:200]}).")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FederationError(f"A reply to {kind} has {name} as {type(value).__name__}, not as a finite number.")


def check_arrays(kind: str, arrays: Arrays, adapter: Arrays | None) -> None:
    """Raise FederationError for arrays that are not those of the adapter received, or its one coded update.

    `adapter`: the arrays that came with the request; None where it had none, as for the first adapter.
    """
    if kind not in WITH_ARRAYS:
        if arrays:
            raise FederationError(f"A reply to {kind} holds no arrays.")
        return
    for name, array in arrays.items():
        if name == UPDATE and array.dtype == "uint8" and array.ndim == 1:
            continue
        known = adapter.get(name) if adapter is not None else array
        if known is None or array.shape != known.shape or array.dtype.kind != "f":
            raise FederationError(f"A reply to {kind} holds an array that is not the adapter's: {name[:120]}.")
