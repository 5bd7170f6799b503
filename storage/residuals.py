"""What a client's coded messages have left out so far: its own storage, which never travels.

A file for each round the client has trained in. The server says which of them its next message adds to: the one of the
last round whose reply was counted. So a round done again, or one whose reply was lost, gives the same bytes.
"""

import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from storage.disks import unwritten
from storage.errors import StorageError

Arrays = dict[str, np.ndarray]
_KEPT = 4
"""Files of a client; more than the newest, for rounds that turn out damaged."""


def residual_folder(folder: Path, run_id: str, partition: int) -> Path:
    """Where a client keeps its residuals of a run; raises StorageError for a run id that is no plain name."""
    if run_id in {"", ".."} or Path(run_id).name != run_id:
        raise StorageError(f"{run_id!r:.80} is no run's name; ask whoever runs the server.")
    return folder / run_id / f"client-{partition:05d}"


def keep_residual(folder: Path, round_number: int, residual: Arrays, added_to: int) -> None:
    """Keep the residual after a round, and that of round `added_to`, in case this one is done again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(folder, round_number)
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb") as file:
            file.write(save({name: np.ascontiguousarray(residual[name]) for name in sorted(residual)}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritten(error, f"the residual was not kept at {path}") from error
    _forget(folder, {path, _file(folder, added_to)})


def _forget(folder: Path, needed: set[Path]) -> None:
    """Remove the oldest files that are not needed, but for some."""
    others = [path for path in sorted(folder.glob("round-*.safetensors")) if path not in needed]
    for path in others[: max(0, len(others) + len(needed) - _KEPT)]:
        path.unlink(missing_ok=True)


def read_residual(folder: Path, round_number: int) -> Arrays:
    """The residual after a round, none for round 0; raises StorageError where it is missing or damaged."""
    if round_number == 0:
        return {}
    path = _file(folder, round_number)
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"What was left out up to round {round_number} is not at {path}; bring it back, or start a new run."
        ) from error


def _file(folder: Path, round_number: int) -> Path:
    return folder / f"round-{round_number:04d}.safetensors"
