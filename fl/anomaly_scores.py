"""The scores that windows are judged by, made of the columns of fl/scoring.py; needs no torch."""

from collections.abc import Mapping

import numpy as np

from fl.errors import ScoreError

SURPRISE_SCORES = ("mean_token", "max_token", "mean_message", "max_message")
SCORE_NAMES = ("top_k", "unaligned", *SURPRISE_SCORES)


def anomaly_score(columns: Mapping[str, np.ndarray], name: str, k: int | None = None) -> np.ndarray:
    """A score that is higher the more anomalous a window is: a surprise as it is, an accuracy as 1 - accuracy.

    Raises ScoreError for a name or K that the columns do not have.
    """
    column = {"top_k": f"top_{k}", "unaligned": f"unaligned_{k}"}.get(name, name)
    if column not in columns or name not in SCORE_NAMES:
        raise ScoreError(f"No score {name!r} with k={k}; scores are {', '.join(SCORE_NAMES)}.")
    values = np.asarray(columns[column], np.float64)
    return values if name in SURPRISE_SCORES else 1.0 - values
