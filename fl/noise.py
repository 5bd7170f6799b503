"""Gaussian noise that nobody can compute without its key, and that is the same whenever it is computed again."""

import hashlib
import math

import numpy as np

_TWO_TO_53 = float(1 << 53)


def gaussian(key: bytes, purpose: str, size: int) -> np.ndarray:
    """`size` independent standard normal values, float64, which follow from key and purpose.

    SHAKE-256 (FIPS 202) of both gives the bits, Box and Muller's transform (1958) the values: 53 bits each, so that
    none is beyond 8.6 (a share of 1e-17 of a true Gaussian, far below any delta).
    """
    pairs = -(-size // 2)
    stream = hashlib.shake_256(len(key).to_bytes(8, "little") + key + purpose.encode()).digest(16 * pairs)
    bits = np.frombuffer(stream, "<u8") >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((bits[:pairs].astype(np.float64) + 1) / _TWO_TO_53))
    angle = bits[pairs:].astype(np.float64) * (2 * math.pi / _TWO_TO_53)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


def seed_key(seed: int) -> bytes:
    """The key of a reproducible experiment. Whoever knows the seed can take the noise off again."""
    return f"seed {seed}".encode()
