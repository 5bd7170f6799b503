"""What tests of running services share: the command line with a home of its own, and questions to Prefect."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.processes import belonging

ROOT = Path(__file__).resolve().parent.parent
_MEANT_FOR_OTHERS = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "ATALAIA_DATABASE")


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_TRIES = 6


def atalaia(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a home of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in _MEANT_FOR_OTHERS}
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *arguments],
        cwd=ROOT,
        env={**inherited, "ATALAIA_HOME": str(home), "COLUMNS": "120", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def post(prefect_url: str, path: str, body: object) -> Any:  # noqa: ANN401
    """The answer of Prefect's API; asked again where its SQLite is locked for a moment, as Prefect's client does."""
    request = urllib.request.Request(
        f"{prefect_url}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or not left:
                raise
            time.sleep(2)
    raise AssertionError("unreachable")


def get(prefect_url: str, path: str) -> Any:  # noqa: ANN401
    """What lies at a path of Prefect's API."""
    with urllib.request.urlopen(f"{prefect_url}/api/{path}", timeout=120) as answer:
        return json.load(answer)


def eventually(seconds: float, found: Callable[[], Any], what: str) -> Any:  # noqa: ANN401
    """The first thing found that is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # A server on a busy machine may leave a question without an answer.
        with suppress(OSError):
            if result := found():
                return result
        time.sleep(1)
    raise AssertionError(f"not within {seconds:.0f} seconds: {what}")


PATIENCE = 1500.0
"""Seconds for what takes one minute where nothing else is going on."""


@dataclass(frozen=True)
class Platform:
    """Services that are up."""

    home: Path
    prefect: str
    mlflow: str
    options: tuple[str, ...]

    def report(self) -> Any:  # noqa: ANN401
        return json.loads(atalaia("status", "--json", home=self.home).stdout)

    def service(self, name: str) -> dict[str, Any]:
        return next(found for found in self.report()["services"] if found["name"] == name)

    def processes(self, text: str = "") -> list[psutil.Process]:
        """What belongs to the services, and has the text in its command."""
        return [found for found in belonging(str(self.home / "services")) if text in " ".join(found.cmdline())]

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = post(self.prefect, "deployments/filter", {"deployments": {"name": {"any_": [name]}}})[0]
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(get(self.prefect, f"flow_runs/{run_id}"))

    def completed(self, run_id: str, run_count: int = 1) -> dict[str, Any]:
        def done() -> dict[str, Any] | None:
            run = self.run(run_id)
            assert run["state_type"] != "FAILED", run["state"]
            return run if run["state_type"] == "COMPLETED" and run["run_count"] >= run_count else None

        return dict(eventually(PATIENCE, done, f"{run_id} completes"))

    def states(self, run_id: str) -> list[str]:
        return [state["name"] for state in get(self.prefect, f"flow_run_states/?flow_run_id={run_id}")]


@contextmanager
def running_platform(home: Path, *options: str, **environment: str) -> Iterator[Platform]:
    """Everything up, with an empty home folder; afterwards nothing of it is left."""
    prefect_port, mlflow_port = free_port(), free_port()
    ports = ("--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port))
    addresses = (f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}")
    started = Platform(home, *addresses, (*ports, *options))
    done = atalaia("up", *started.options, home=home, **environment)
    try:
        assert done.returncode == 0, done.stderr
        yield started
    finally:
        atalaia("down", home=home)
    assert belonging(str(home / "services")) == []


def small_run(model: Path, rounds: int, blocks: int = 300) -> dict[str, Any]:
    """Parameters of an experiment that takes seconds."""
    values = {"model": {"name": str(model)}, "dataset": {"blocks": blocks}, "federation": {"rounds": rounds}}
    return {"config": {"preset": "demo", **values}}
