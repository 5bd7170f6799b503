"""How many windows a model has seen, so that the simple rules may be given no more."""

from pathlib import Path

import numpy as np

from storage.adapters import commit_round
from tasks.search_threshold import trained_windows

CLIENT = {
    "tokens": 9, "computed_tokens": 9, "loss": 1.0, "seconds": 1.0, "peak_memory_mb": 1.0, "bytes_down": 1,
    "bytes_up": 1, "learning_rate": 0.1,
}  # fmt: skip


def _round(folder: Path, number: int, *shares: tuple[int, int]) -> None:
    """A round of two steps by clients given as (partition, windows of its share)."""
    clients = [{"round": number, "partition": p, "examples": n, "steps": 2, **CLIENT} for p, n in shares]
    commit_round(folder, number, {"a": np.zeros(1, np.float32)}, f"{number:032d}", clients, {"round": number})


def test_a_client_has_seen_its_batches_but_no_more_than_its_share(tmp_path: Path) -> None:
    _round(tmp_path, 0)
    _round(tmp_path, 1, (0, 100), (1, 10))
    _round(tmp_path, 2, (0, 100), (2, 100))
    assert trained_windows(tmp_path, batch_size=8) == (2 + 2) * 8 + 10 + 2 * 8


def test_an_untouched_model_has_seen_none(tmp_path: Path) -> None:
    _round(tmp_path, 0)
    assert trained_windows(tmp_path, batch_size=8) == 0
