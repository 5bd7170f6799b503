"""Which anomalous test windows each detector misses, by distinct sequence and by kind of failure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl.metrics_table import Row, Windows
from fl.thresholds import Flags

_SHOWN = 25


def misses(windows: Windows, flagged: Mapping[str, Flags], shown: int = _SHOWN) -> dict[str, Any]:
    """What the report tells of missed anomalies; `flagged` holds one value a window for each detector.

    - `detectors`: for each, how many anomalous test windows and distinct sequences it misses;
    - `sequences`: up to `shown` distinct sequences that some detector misses, those missed by most first, each with an
      example window, its number of windows, and who misses it;
    - `kinds`: recall of each detector by kind of failure, where the dataset names kinds.

    Windows of one sequence share their fate, since every detector judges by the sequence alone.
    """
    rows = windows.labelled("test")
    rows = rows[windows.label[rows] == 1]
    if not rows.size:
        return {"detectors": [], "sequences": [], "kinds": []}
    sequences, first, copies = np.unique(windows.sequence[rows], return_index=True, return_counts=True)
    missed = {name: ~flags[rows[first]] for name, flags in flagged.items()}
    detectors = [
        {
            "detector": name,
            "anomalies": int(copies.sum()),
            "missed": int(copies[miss].sum()),
            "sequences": len(sequences),
            "missed_sequences": int(miss.sum()),
        }
        for name, miss in missed.items()
    ]
    times = np.sum(list(missed.values()), axis=0)
    order = [int(i) for i in np.lexsort((rows[first], -copies, -times)) if times[i]][:shown]
    kinds = windows.kind
    listed = [
        {
            "window": int(rows[first[i]]),
            "sequence": int(sequences[i]),
            "windows": int(copies[i]),
            "kind": None if kinds is None else kinds[rows[first[i]]],
            "missed_by": [name for name, miss in missed.items() if miss[i]],
        }
        for i in order
    ]
    return {"detectors": detectors, "sequences": listed, "kinds": _kinds(windows, rows, flagged)}


def _kinds(windows: Windows, rows: np.ndarray, flagged: Mapping[str, Flags]) -> list[Row]:
    if windows.kind is None:
        return []
    kinds = windows.kind[rows]
    return [
        {
            "kind": kind,
            "windows": int((kinds == kind).sum()),
            "recall": {name: float(flags[rows[kinds == kind]].mean()) for name, flags in flagged.items()},
        }
        for kind in sorted({str(kind) for kind in kinds if kind})
    ]
