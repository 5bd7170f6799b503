"""Child processes that never outlive whoever started them."""

import ctypes
import signal
import sys

_DIE_WITH_PARENT = 1
"""prctl's PR_SET_PDEATHSIG."""


def die_with_parent() -> None:
    """For `preexec_fn`: have the kernel end this child when its parent dies, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
