"""Arrays from elsewhere: read only where every byte before their values is the one that is expected."""

import io
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.lib.format import write_array_header_1_0

from fl.errors import BadMessage

SERIALIZED = "numpy.ndarray"
"""Flower's name for arrays in numpy's own format."""
_MOST_DIMENSIONS = 8


class SentArray(Protocol):
    """What Flower's Array tells of itself, all of it claimed by the sender."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def printable(words: object) -> str:
    """What somebody else has sent as words, as it may stand on a screen."""
    return "".join(character for character in str(words) if character.isprintable())


def plain_array(sent: SentArray, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array `name`, which must have this type and shape; raises BadMessage for anything else.

    Nothing of what was sent is interpreted: claims and sizes are compared, then the header with the one that numpy
    writes for such an array, and the bytes after it are the values. So there is nothing to unpickle, unzip or parse.
    """
    if sent.stype != SERIALIZED:
        raise BadMessage(f"has {name} in the form {sent.stype!r:.40}, not {SERIALIZED}")
    if tuple(sent.shape) != shape or sent.dtype != str(dtype):
        raise BadMessage(f"has {name} as {printable(sent.dtype):.40}{tuple(sent.shape)!s:.80}, not {dtype}{shape}")
    header = _header(dtype.str, shape)
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(sent.data) != len(header) + size:
        raise BadMessage(f"has {name} in {len(sent.data)} bytes, not {len(header) + size}")
    if sent.data[: len(header)] != header:
        raise BadMessage(f"has {name} in a form that cannot be read")
    return np.frombuffer(sent.data, dtype, offset=len(header)).reshape(shape).copy()


def claimed_array(sent: SentArray, name: str, dtypes: tuple[str, ...] = ("float32",)) -> np.ndarray:
    """As `plain_array`, where the sender decides on the shape, and on the type among some; values must be finite."""
    name, shape = printable(name), tuple(sent.shape)
    if sent.dtype not in dtypes or len(shape) > _MOST_DIMENSIONS or not all(_is_size(size) for size in shape):
        raise BadMessage(
            f"has {name} as {printable(sent.dtype):.40}{shape!s:.80}, which is no array of {' or '.join(dtypes)}"
        )
    array = plain_array(sent, name, np.dtype(sent.dtype), shape)
    if not np.isfinite(array).all():
        raise BadMessage(f"has NaN or infinity in {name}")
    return array


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 40


@lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What numpy writes before the values of an array in C order."""
    buffer = io.BytesIO()
    write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
