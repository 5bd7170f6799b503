"""benchmarks/process_trees.py: what is measured of a command is that of all its processes."""

import os
import subprocess
import sys

import pytest

from benchmarks.process_trees import spend, watch

_HOLD = "import time; held = bytearray(b'1') * (80 << 20); time.sleep(2)"
_PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_HOLD!r}], check=True)"


def test_memory_is_that_of_the_children_too() -> None:
    spent = watch([sys.executable, "-c", _PARENT], os.environ)
    assert spent.peak_mb is not None
    assert 80 < spent.peak_mb < 160
    assert spent.processes == 2
    assert spent.seconds >= 2


def test_processor_time_is_that_of_the_children_too() -> None:
    busy = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}], check=True)"
    assert spend([sys.executable, "-c", parent], os.environ).cpu_seconds >= 0.5


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        spend([sys.executable, "-c", "raise SystemExit(3)"], os.environ)
