"""The scores that windows are judged by, of the columns of fl/scoring.py and fl/rarity.py; needs no torch."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from fl.errors import ScoreError
from fl.rarity import RARITY

ScoreName = Literal[
    "top_k", "unaligned", "rarity", "max_excess", "mean_token", "max_token", "mean_message", "max_message"
]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
SURPRISE_SCORES = tuple(name for name in SCORE_NAMES if name not in {"top_k", "unaligned"})
DEFAULT_SCORE: ScoreName = RARITY
"""Where labels do not choose: good on two logs and when they change, as no default before it was.

How it was chosen, and on which windows: docs/results/experiments.md.
"""


def anomaly_score(columns: Mapping[str, np.ndarray], name: str, k: int | None = None) -> np.ndarray:
    """A score that is higher the more anomalous a window is: a surprise as it is, an accuracy as 1 - accuracy.

    Raises ScoreError for a name or K that the columns do not have.
    """
    column = {"top_k": f"top_{k}", "unaligned": f"unaligned_{k}"}.get(name, name)
    if column not in columns or name not in SCORE_NAMES:
        raise ScoreError(f"No score {name!r} with k={k}; scores are {', '.join(SCORE_NAMES)}.")
    values = np.asarray(columns[column], np.float64)
    return values if name in SURPRISE_SCORES else 1.0 - values
