"""The secret key of a run's noise: made once, kept beside the rounds until the run ends, and never sent or shown.

With it, noise that is needed again after a crash is the same noise; whoever has it can take the noise off the adapters.
"""

import os
import secrets
from pathlib import Path

from storage.disks import unwritten
from storage.errors import StorageError

KEY = "noise.key"
_BYTES = 32


def noise_key(folder: Path, is_begun: bool) -> bytes:
    """The folder's key, made where there is none; `is_begun` says that noise was drawn from it before.

    Raises StorageError where it is damaged, or missing though the run has begun.
    """
    path = folder / KEY
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        if is_begun:
            raise StorageError(
                f"The key of this run's noise is not at {path}: rounds done again would tell more than was accounted "
                "for; start a new run."
            ) from None
        key = _new_key(path)
    if len(key) != _BYTES:
        raise StorageError(f"The key at {path} has {len(key)} bytes, not {_BYTES}; bring it back, or start a new run.")
    return key


def _new_key(path: Path) -> bytes:
    """A new key on the disk before anybody uses it; readable by this user only."""
    key = secrets.token_bytes(_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritten(error, f"the key of the noise was not kept at {path}") from error
    return key


def forget_noise_key(folder: Path) -> None:
    """Remove the key of a run that has ended, so that nobody can take the noise off later."""
    (folder / KEY).unlink(missing_ok=True)
