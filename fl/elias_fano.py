"""Ascending whole numbers in few bytes: an Elias-Fano sequence, about 2 + log2(size / count) bits for each.

The low bits of the numbers lie side by side; their high bits follow as a bit set in which the i-th one stands at the
number's high bits plus i (P. Elias, Efficient storage and retrieval by content and address, J. ACM 21(2), 1974).
"""

import numpy as np

from fl.errors import BadMessage


def _low_bits(count: int, size: int) -> int:
    return max(0, (size // max(1, count)).bit_length() - 1)


def sequence_bytes(count: int, size: int) -> int:
    """How long a sequence of `count` numbers below `size` is."""
    low = _low_bits(count, size)
    return -(-count * low // 8) + -(-_high_length(count, size, low) // 8)


def _high_length(count: int, size: int, low: int) -> int:
    return count + (max(1, size) - 1 >> low) + 1


def pack_sequence(indices: np.ndarray, size: int) -> bytes:
    """Ascending numbers below `size` as `sequence_bytes` bytes."""
    low = _low_bits(len(indices), size)
    lows = (indices[:, None] >> np.arange(low) & 1).astype(np.uint8)
    highs = np.zeros(_high_length(len(indices), size, low), np.uint8)
    highs[(indices >> low) + np.arange(len(indices))] = 1
    return b"".join(np.packbits(bits, bitorder="little").tobytes() for bits in (lows.ravel(), highs))


def unpack_sequence(data: bytes, count: int, size: int) -> np.ndarray:
    """The numbers of `pack_sequence`; raises BadMessage unless there are `count`, ascending and below `size`."""
    low = _low_bits(count, size)
    raw = np.frombuffer(data, np.uint8)
    split = -(-count * low // 8)
    lows = read_bits(raw[:split], count * low).reshape(count, low).astype(np.int64)
    ones = np.flatnonzero(read_bits(raw[split:], _high_length(count, size, low)))
    if len(ones) != count:
        raise BadMessage("does not hold as many places as it says")
    indices = (ones - np.arange(count) << low) + (lows << np.arange(low)).sum(axis=1)
    if (np.diff(indices) <= 0).any() or (indices >= size).any():
        raise BadMessage("holds places out of order or out of bounds")
    return indices


def read_bits(raw: np.ndarray, count: int) -> np.ndarray:
    """The first `count` bits of some bytes; raises BadMessage where others than those are set."""
    bits = np.unpackbits(raw, bitorder="little")
    if bits[count:].any():
        raise BadMessage("holds more bits than it says")
    return bits[:count]
