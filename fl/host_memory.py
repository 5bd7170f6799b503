"""Memory of the process itself: large blocks that are freed and asked for again should not go to the system between."""

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt (its malloc.h)."""
_LARGEST_BLOCK = 1 << 30
_KEPT = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let glibc keep up to 2 GiB of freed memory for what is asked for next; False where the C library is another.

    By itself it gives blocks of more than 32 MB back as soon as they are freed, and a model's layers free and ask for
    such blocks all the time: the system then clears every page anew, a tenth of a forward pass's time on two cores.
    """
    mallopt = _of_library("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, _KEPT))


def give_back_freed_memory() -> None:
    """Return to the system what is kept and not in use, so that what follows is not charged with it."""
    trim = _of_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_library(name: str) -> Any:  # noqa: ANN401
    """A function of glibc; None where the C library has none of that name."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
