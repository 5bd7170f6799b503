"""Seconds, processor time and memory of a command with every process that it starts."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

_LOOK_SECONDS = 0.5


class Spent(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float
    """User and system, of the command and of those of its processes that it waited for."""
    peak_mb: float | None = None
    """Most memory of all its processes together, each page shared by some counted once (PSS); 2^20 bytes."""
    processes: int | None = None
    """How many there were then."""


def spend(command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> Spent:
    """Run a command to its end without looking at it; raises CalledProcessError where it fails."""
    begin = time.monotonic()
    process = _start(command, environment, cwd)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - begin
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Spent(seconds, used.ru_utime + used.ru_stime)


def watch(command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> Spent:
    """Run a command to its end and look at the memory of all its processes now and then."""
    begin = time.monotonic()
    process = _start(command, environment, cwd)
    root, peak, processes, cpu = psutil.Process(process.pid), 0, 0, {}
    while process.poll() is None:
        held = {each.pid: _held(each) for each in [root, *_children(root)]}
        cpu |= {pid: seconds for pid, (_, seconds) in held.items()}
        memory = sum(pages for pages, _ in held.values())
        if memory > peak:
            peak, processes = memory, len(held)
        time.sleep(_LOOK_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Spent(time.monotonic() - begin, sum(cpu.values()), peak / 2**20, processes)


def _start(command: Sequence[str], environment: Mapping[str, str], cwd: Path | None) -> "subprocess.Popen[bytes]":
    # Standard output belongs to the figures; what the command tells of its progress and failures may be seen.
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=dict(environment), cwd=cwd, stdin=quiet, stdout=quiet)


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.Error:
        return []


def _held(process: psutil.Process) -> tuple[int, float]:
    """Bytes and processor seconds of one process; nothing where it has just ended."""
    try:
        times = process.cpu_times()
        return process.memory_full_info().pss, times.user + times.system
    except psutil.Error:
        return 0, 0.0
