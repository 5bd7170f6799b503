"""Codecs: what an update is packed into on its way, one array of bytes that says what it is.

A message is a header of 28 bytes and a payload whose size follows from it. All arrays of an update, in the order of
their names, are one vector of n values. The receiver knows names and shapes (the header holds a hash of them) and which
codec was agreed on; sizes are checked before anything is decoded, and every value that no encoder writes is refused.

- `float32`, `float16`: the values; those of 16 bits relative to the largest.
- `int8`, `int4`: whole multiples, at most 127 or 7, of a scale for each block of values (as in QSGD, arXiv 1610.02132,
  but scaled by the block's largest value), rounded to nearest, or up or down by chance so that the mean is exact.
- `sign`: one bit a value and the mean magnitude of each block (arXiv 1901.09847).
- `topk`: the values of largest magnitude; their places as an Elias-Fano sequence (about 2 + log2(n / k) bits each).
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from fl.elias_fano import pack_sequence, read_bits, sequence_bytes, unpack_sequence
from fl.errors import BadMessage, LearningError

Arrays = dict[str, np.ndarray]
DenseName = Literal["float32", "float16", "int8", "int4", "sign"]
CodecName = Literal["none", "float32", "float16", "int8", "int4", "sign", "topk"]
"""`none`: arrays travel as they are, each by itself."""

_MAGIC, _VERSION = b"At", 1
_HEADER = struct.Struct("<2sBBBxHIIfQ")
"""Magic, version, codec, codec of the values kept, block, n, k, unit, hash of names and shapes; 28 bytes."""
_NAMES: tuple[str, ...] = get_args(CodecName)
_LEVELS = {"int8": 127, "int4": 7}


@dataclass(frozen=True)
class Codec:
    """A way to pack updates."""

    name: CodecName
    block: int = 64
    """Values with a scale in common."""
    share: float = 0.01
    """Share of the values that `topk` keeps, at least one."""
    values: DenseName = "int8"
    """How `topk` codes the values it keeps."""

    @property
    def dense(self) -> DenseName:
        """The codec of the values themselves."""
        return self.values if self.name == "topk" else cast(DenseName, self.name)

    def kept(self, values: int) -> int:
        """How many of so many values are sent."""
        return max(1, round(self.share * values)) if self.name == "topk" and values else values


def encode(update: Mapping[str, np.ndarray], codec: Codec, generator: np.random.Generator | None = None) -> np.ndarray:
    """`update` as one array of bytes; integers are rounded by chance where there is a `generator`, else to nearest.

    Raises LearningError for values that are not finite.
    """
    vector = _flat(update)
    if not np.isfinite(vector).all():
        raise LearningError("The update holds NaN or infinity and cannot be sent; lower learning_rate_max.")
    places, kept = b"", vector
    if codec.name == "topk":
        indices = largest(vector, codec.kept(vector.size))
        places, kept = pack_sequence(indices, vector.size), vector[indices]
    unit, payload = _pack_values(kept, codec.dense, codec.block, generator)
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        _NAMES.index(codec.name),
        _NAMES.index(codec.dense),
        codec.block,
        vector.size,
        kept.size,
        unit,
        _layout_hash(update),
    )
    return np.frombuffer(header + places + payload, np.uint8)


def decode(packed: np.ndarray, codec: Codec, like: Mapping[str, np.ndarray]) -> Arrays:
    """The update in `packed`, with the names and shapes of `like`; raises BadMessage for what `encode` never makes."""
    size = sum(array.size for array in like.values())
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size != encoded_bytes(size, codec):
        raise BadMessage(
            f"is {packed.dtype}{packed.shape}, not the {encoded_bytes(size, codec)} bytes of codec {codec.name}"
        )
    data = packed.tobytes()
    *described, unit, layout = _HEADER.unpack_from(data)
    kept = codec.kept(size)
    agreed = [_MAGIC, _VERSION, _NAMES.index(codec.name), _NAMES.index(codec.dense), codec.block, size, kept]
    if described != agreed or layout != _layout_hash(like):
        raise BadMessage(f"has a header of another codec or adapter than the agreed {codec.name}")
    if not (np.isfinite(unit) and unit >= 0):
        raise BadMessage("has a unit that is no size")
    places = sequence_bytes(kept, size) if codec.name == "topk" else 0
    with np.errstate(over="ignore"):
        values = _unpack_values(data[_HEADER.size + places :], kept, unit, codec)
    if not np.isfinite(values).all():
        raise BadMessage("holds values that are not finite")
    if codec.name == "topk":
        indices = unpack_sequence(data[_HEADER.size : _HEADER.size + places], kept, size)
        vector = np.zeros(size, np.float32)
        vector[indices] = values
    else:
        vector = values
    return _shaped(vector, like)


def encoded_bytes(values: int, codec: Codec) -> int:
    """How long a message with so many values is."""
    kept = codec.kept(values)
    places = sequence_bytes(kept, values) if codec.name == "topk" else 0
    return _HEADER.size + places + sum(_value_bytes(kept, codec.dense, codec.block))


def encode_with_feedback(
    update: Mapping[str, np.ndarray],
    residual: Mapping[str, np.ndarray] | None,
    codec: Codec,
) -> tuple[np.ndarray, Arrays]:
    """The message for `update` plus what former messages left out, and what this one leaves out.

    Error feedback (arXiv 1901.09847; with local steps and few clients a round, arXiv 2211.14292): over the rounds, what
    was decoded and the last residual add up to the updates.
    """
    before = residual or {}
    wanted = {name: array + before.get(name, np.float32(0)) for name, array in update.items()}
    packed = encode(wanted, codec)
    arrived = decode(packed, codec, wanted)
    return packed, {name: array - arrived[name] for name, array in wanted.items()}


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if not arrays:
        return np.zeros(0, np.float32)
    return np.concatenate([np.asarray(arrays[name], np.float32).ravel() for name in sorted(arrays)])


def _shaped(vector: np.ndarray, like: Mapping[str, np.ndarray]) -> Arrays:
    found: Arrays = {}
    start = 0
    for name in sorted(like):
        stop = start + like[name].size
        found[name] = vector[start:stop].reshape(like[name].shape)
        start = stop
    return found


def _layout_hash(arrays: Mapping[str, np.ndarray]) -> int:
    layout = "".join(f"{name} {tuple(arrays[name].shape)}\n" for name in sorted(arrays))
    return int.from_bytes(hashlib.blake2b(layout.encode(), digest_size=8).digest(), "little")


def _value_bytes(count: int, dense: DenseName, block: int) -> tuple[int, int]:
    """Bytes of the blocks' scales, and of the values."""
    bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "sign": 1}[dense]
    scales = 0 if dense.startswith("float") else 2 * -(-count // block)
    return scales, -(-count * bits // 8)


def _pack_values(
    values: np.ndarray, dense: DenseName, block: int, generator: np.random.Generator | None
) -> tuple[float, bytes]:
    """The message's unit, and the blocks' scales (as parts of the unit) followed by the coded values."""
    if dense == "float32":
        return 0.0, values.astype("<f4").tobytes()
    magnitudes = np.abs(values)
    if dense == "float16":
        unit = np.float32(magnitudes.max(initial=0))
        return float(unit), _parts(values, unit).astype("<f2").tobytes()
    blocks = _blocks(magnitudes, block)
    if dense == "sign":
        scales = blocks.sum(axis=1, dtype=np.float64) / _block_sizes(values.size, block)
    else:
        scales = blocks.max(axis=1, initial=0) / np.float32(_LEVELS[dense])
    unit = np.float32(scales.max(initial=0))
    ratios = _rounded_up(_parts(scales, unit))
    if dense == "sign":
        return float(unit), ratios.tobytes() + np.packbits(values >= 0, bitorder="little").tobytes()
    codes = _rounded(_parts(values, _spread(ratios, unit, block, values.size)), _LEVELS[dense], generator)
    return float(unit), ratios.tobytes() + (codes.tobytes() if dense == "int8" else _nibbles(codes))


def _unpack_values(data: bytes, count: int, unit: float, codec: Codec) -> np.ndarray:
    dense, block = codec.dense, codec.block
    if dense.startswith("float"):
        given = np.frombuffer(data, "<f4" if dense == "float32" else "<f2").astype(np.float32)
        if dense == "float16" and not (np.abs(given) <= 1).all():
            raise BadMessage("holds values above their unit")
        return given if dense == "float32" else given * np.float32(unit)
    scales, _ = _value_bytes(count, dense, block)
    ratios = np.frombuffer(data[:scales], "<f2")
    if not ((ratios >= 0) & (ratios <= 1)).all():
        raise BadMessage("holds a scale outside 0 to 1")
    return _codes(data[scales:], count, dense) * _spread(ratios, np.float32(unit), block, count)


def _codes(data: bytes, count: int, dense: DenseName) -> np.ndarray:
    """The whole numbers of a payload, as float32; raises BadMessage for those that no encoder writes."""
    raw = np.frombuffer(data, np.uint8)
    if dense == "sign":
        return read_bits(raw, count).astype(np.float32) * 2 - 1
    if dense == "int8":
        codes = raw.view(np.int8).astype(np.float32)
    else:
        nibbles = np.stack([raw & 15, raw >> 4], axis=1).ravel()
        if nibbles[count:].any():
            raise BadMessage("holds more values than it says")
        codes = nibbles[:count].astype(np.float32) - 8
    if (codes < -_LEVELS[dense]).any():
        raise BadMessage("holds a value beyond its scale")
    return codes


def _nibbles(codes: np.ndarray) -> bytes:
    shifted = np.zeros(len(codes) + len(codes) % 2, np.uint8)
    shifted[: len(codes)] = codes + 8
    return (shifted[::2] | shifted[1::2] << 4).tobytes()


def _parts(values: np.ndarray, of: np.ndarray | np.float32) -> np.ndarray:
    """Values / of in float32, 0 where `of` is 0 or so small that there is no such quotient."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        parts = np.asarray(values / of, np.float32)
    return np.nan_to_num(parts, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _rounded_up(ratios: np.ndarray) -> np.ndarray:
    """Ratios from 0 to 1 as float16, never below what they were: no value may exceed its block's scale."""
    halves = ratios.astype("<f2")
    return np.where(halves < ratios, np.nextafter(halves, np.float16(1)), halves).astype("<f2")


def _spread(ratios: np.ndarray, unit: np.float32, block: int, count: int) -> np.ndarray:
    """The scale of each value."""
    return np.repeat(ratios.astype(np.float32) * unit, block)[:count]


def _rounded(parts: np.ndarray, levels: int, generator: np.random.Generator | None) -> np.ndarray:
    if generator is not None:
        whole = np.floor(parts + generator.random(parts.size, dtype=np.float32))
    else:
        whole = np.rint(parts)
    return np.clip(whole, -levels, levels).astype(np.int8)


def _blocks(values: np.ndarray, block: int) -> np.ndarray:
    """Rows of `block` values, the last filled up with zeros."""
    padded = np.zeros(-(-values.size // block) * block, np.float32)
    padded[: values.size] = values
    return padded.reshape(-1, block)


def _block_sizes(count: int, block: int) -> np.ndarray:
    return np.minimum(block, count - np.arange(0, count, block))


def largest(vector: np.ndarray, count: int) -> np.ndarray:
    """The ascending indices of the `count` values of largest magnitude; of equal ones, the first."""
    magnitudes = np.abs(vector)
    if count >= vector.size:
        return np.arange(vector.size)
    border = np.partition(magnitudes, vector.size - count)[vector.size - count]
    above = np.flatnonzero(magnitudes > border)
    at = np.flatnonzero(magnitudes == border)[: count - above.size]
    return np.sort(np.concatenate([above, at]))
