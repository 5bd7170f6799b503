"""Adapters as files and hashes; read where torch is not loaded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fl.errors import ModelError

Arrays = dict[str, np.ndarray]


def save_adapter(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write `arrays` as a safetensors file."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, dict(metadata or {}))


def read_adapter(path: Path) -> Arrays:
    """The arrays of a safetensors file; raises ModelError when it is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no readable adapter: {error}") from error


def adapter_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """A name of 32 hex digits for the adapter's exact content (names, shapes, types, values)."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
