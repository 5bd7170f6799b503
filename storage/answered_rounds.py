"""Which rounds a site that adds its own noise has answered: each one request only.

The noise of several answers to one round would average away, and with it what was accounted for.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from storage.disks import unwritten
from storage.errors import StorageError

_FILE = "answered.json"


def answered_rounds(folder: Path) -> dict[int, str]:
    """The request of each round that was answered, by its hash; raises StorageError where the file is damaged."""
    path = folder / _FILE
    try:
        return {int(number): str(request) for number, request in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"{path} cannot be read: which rounds were answered is not known; bring it back.") from error


def is_answered_as_another(folder: Path) -> bool:
    """Whether rounds of this folder's run were answered under another number of the site."""
    return any(path.parent != folder for path in folder.parent.glob(f"*/{_FILE}"))


def keep_answered_rounds(folder: Path, answered: Mapping[int, str]) -> None:
    """Keep which rounds are answered; it is on the disk when this returns."""
    path = folder / _FILE
    part = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("w") as file:
            json.dump(answered, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritten(error, f"which rounds are answered was not kept at {path}") from error
