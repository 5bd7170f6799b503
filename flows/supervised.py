"""One service under supervision: started, asked how it is, started again when it dies, given up when it never lasts."""

import signal
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import psutil

from flows.processes import SERVICE_MARK, SERVICES_MARK, end, end_belonging
from flows.services import PROJECT, Service
from storage.services import Condition, ServiceState
from tasks.child_process import die_with_parent

_ASK_SECONDS = 1.0
"""Between two questions to a service that is starting; ten times longer once it is well."""
_PATIENCE = 300.0
"""Seconds without an answer after which a service is started again; servers start slowly on a busy machine."""
_STEADY_SECONDS = 60.0
"""A service that was well for so long has its failures forgiven."""
_MOST_FAILURES = 5
_LONGEST_PAUSE = 60.0
_LONG_LOG = 10 << 20
"""Bytes from which a log is put aside at the next start of what writes it."""
_START_SECONDS = 90.0
"""What a server gets to finish its start, migrations included, before it is ended."""
_RUNS_END_SECONDS = 25.0
"""What flow runs get to end their training jobs and to say that they were stopped."""


def now() -> str:
    """The time as state files hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Supervised:
    """One service, its process if it has one, and its history."""

    def __init__(self, service: Service, folder: Path, environment: dict[str, str]) -> None:
        self.service = service
        self.condition: Condition = "waiting"
        self.reason = ""
        self.log = folder / f"{service.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = str(folder)
        marks = {SERVICES_MARK: self._folder, SERVICE_MARK: service.name}
        self._environment = {**environment, **service.environment, **marks}
        self._since = now()
        self._started = self._answered = self._asked = self._well_since = 0.0
        self._pause_ends = 0.0
        self._failures = self._restarts = 0

    def state(self) -> ServiceState:
        """What others may know of it."""
        return ServiceState(
            name=self.service.name,
            condition=self.condition,
            since=self._since,
            pid=self.process.pid if self.process else None,
            address=self.service.address,
            restarts=self._restarts,
            reason=self.reason,
            log=str(self.log),
        )

    def step(self, ready: set[str]) -> None:
        """Start it, ask how it is, or start it again; `ready` names the services that are well."""
        if self.condition in {"done", "given up"}:
            return
        if self.process is None:
            if time.monotonic() >= self._pause_ends and ready.issuperset(self.service.needs):
                self._start()
        elif (status := self.process.poll()) is not None:
            self._ended(status)
        else:
            self._ask()

    def _start(self) -> None:
        try:
            self.process = self._spawn()
        except OSError as error:  # no room for a log, or no memory for a process
            self._failed(f"it could not be started: {error}")
            return
        self._started = time.time()
        self._answered = time.monotonic()
        self._become("starting")

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with open_log(self.log) as log:
            return subprocess.Popen(
                self.service.command,
                cwd=PROJECT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: Ctrl-C reaches the supervisor only, which then ends the services in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _ask(self) -> None:
        well = self.condition == "healthy"
        pause = 10 * _ASK_SECONDS if well else _ASK_SECONDS
        if self.service.once or (well and not self.service.watched) or time.monotonic() - self._asked < pause:
            return
        self._asked = time.monotonic()
        if self.service.answers(self._started):
            self._answered = time.monotonic()
            if not well:
                self._well_since = self._answered
                self._become("healthy")
        elif time.monotonic() - self._answered > _PATIENCE:
            self._end_all()
            self._failed(f"it did not answer for {_PATIENCE:.0f} seconds")
        elif well:
            self._become("silent", "it does not answer")

    def _ended(self, status: int) -> None:
        self.process = None
        # What it started holds its port, or trains without anybody's knowing.
        end_belonging(self._folder, self.service.name)
        if self.service.once and status == 0:
            self._become("done")
        elif status < 0:
            self._failed(f"it was ended by {signal.Signals(-status).name}")
        else:
            self._failed(f"it ended with status {status}")

    def _failed(self, reason: str) -> None:
        """Plan the next start, later each time; give up when it never lasts."""
        if self.condition in {"healthy", "silent"} and time.monotonic() - self._well_since > _STEADY_SECONDS:
            self._failures = 0
        self._failures += 1
        self._restarts += 1
        if self._failures >= _MOST_FAILURES:
            last = f': "{text}"' if (text := last_line(self.log)) else ""
            self._become("given up", f"{reason}, {self._failures} times in a row{last}; see {self.log}")
            return
        pause = min(_LONGEST_PAUSE, 2.0 ** (self._failures - 1))
        self._pause_ends = time.monotonic() + pause
        self._become("restarting", reason)

    def _become(self, condition: Condition, reason: str = "") -> None:
        self.condition, self.reason, self._since = condition, reason, now()
        say(f"{self.service.name}: {condition}{f' ({reason})' if reason else ''}")

    def stop(self) -> None:
        """End it and all it started; a worker's flow runs first, so that they can still report their end."""
        self._let_start()
        if self.process is not None and self.process.poll() is None:
            with suppress(psutil.Error):
                end(psutil.Process(self.process.pid).children(), _RUNS_END_SECONDS)
        self._end_all()
        if self.condition not in {"waiting", "done", "given up"}:
            self._become("stopped")

    def _let_start(self) -> None:
        """Wait until a server that starts has answered: it makes its tables, and half made ones would stay so."""
        ends = time.monotonic() + _START_SECONDS
        while self.service.address and self.condition == "starting" and time.monotonic() < ends:
            if self.process is None or self.process.poll() is not None:
                return
            self._ask()
            time.sleep(_ASK_SECONDS)

    def _end_all(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        end_belonging(self._folder, self.service.name)


def open_log(log: Path) -> BinaryIO:
    """A log to add to; one that has grown long takes the place of `NAME.log.1` first, whoever writes to it is gone."""
    if log.exists() and log.stat().st_size > _LONG_LOG:
        log.replace(f"{log}.1")
    return log.open("ab")


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def say(line: str) -> None:
    """A line in the supervisor's own log; lost where its disk is full, which must not end what it tells of."""
    with suppress(OSError):
        print(f"{now()} {line}", flush=True)
