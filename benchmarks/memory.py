"""The most memory that this process has held."""

import resource
from pathlib import Path


def peak_mb() -> float:
    """Peak resident memory, 2^20 bytes.

    On Linux from the kernel's own account of the process: `ru_maxrss` of a child begins at what its parent held.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
