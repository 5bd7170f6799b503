"""Processes found by what they carry in their environment, ended with all that they started; and who holds a port."""

import os
import socket
import time
from collections.abc import Iterable

import psutil

SERVICES_MARK = "ATALAIA_SERVICES"
"""Names the folder of the services that a process belongs to; inherited by everything it starts."""
SERVICE_MARK = "ATALAIA_SERVICE"
"""Names the service that a process belongs to, within that folder."""
_COMMAND_SHOWN = 80


def belonging(folder: str, service: str | None = None) -> list[psutil.Process]:
    """All processes of a folder's services, or of one of them, with what they started; never this process or its own.

    A process that overwrites its environment (Ray's workers do, to show a title) is found as a child of another.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get(SERVICES_MARK) != folder or service not in {None, environment.get(SERVICE_MARK)}:
                continue
            for member in (process, *process.children(recursive=True)):
                found[member.pid] = member
        except (psutil.Error, OSError):
            continue
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for pid, process in found.items() if pid not in own and _lives(process)]


def end(processes: Iterable[psutil.Process], patience: float) -> int:
    """End processes, politely first, by force after `patience` seconds; how many there were."""
    left = list(processes)
    for process in left:
        _signal(process, force=False)
    _, stubborn = psutil.wait_procs(left, timeout=patience)
    for process in stubborn:
        _signal(process, force=True)
    psutil.wait_procs(stubborn, timeout=5)
    return len(left)


def end_belonging(folder: str, service: str | None = None, patience: float = 10.0) -> int:
    """End everything that belongs to a service, again until nothing new turns up; how many processes there were."""
    ended = 0
    for _ in range(5):
        found = belonging(folder, service)
        if not found:
            break
        ended += end(found, patience)
    return ended


def _signal(process: psutil.Process, *, force: bool) -> None:
    try:
        process.kill() if force else process.terminate()
    except psutil.Error:
        return


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do it: a connection that has just been closed does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def owner_of(port: int) -> str:
    """Who listens at a port, in words."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return _described(connection.pid)
    except psutil.Error:
        pass
    return "a process that this user may not see"


def _described(pid: int | None) -> str:
    if pid is None:
        return "a process that this user may not see"
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return f"process {pid}"
    shown = command if len(command) <= _COMMAND_SHOWN else f"{command[:_COMMAND_SHOWN]}..."
    return f"process {pid} ({shown})"


def wait_for_end(pid: int, patience: float) -> bool:
    """Whether a process ended within so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or not _lives(psutil.Process(pid)):
            return True
        time.sleep(0.1)
    return False
