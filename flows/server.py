"""The Prefect server of a command: the one named by PREFECT_API_URL, else a temporary one of this process."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.error import URLError

from flows.warm_up import Step, beside
from storage.errors import TrackingError
from storage.layout import Layout
from storage.services import running
from tasks.child_process import die_with_parent
from tasks.run_pages import TEMPORARY

HEARTBEAT_SECONDS = 30
"""Between two signs of life of a flow run; Prefect allows no less."""
_PATIENCE = 120.0
"""Seconds to wait for the server: the first start creates its database, on a busy machine slowly."""


def quiet_environment(layout: Layout) -> None:
    """Set what Prefect, MLflow and Flower read when they are imported: where state lies, and no telemetry."""
    layout.prefect.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(layout.prefect),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "FLWR_TELEMETRY_ENABLED": "0",
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",
        "TOKENIZERS_PARALLELISM": "false",
        # Before torch is imported: threads that spin for long take the cores from whatever else is busy.
        "GOMP_SPINCOUNT": "20000",
    }
    services = running(layout)
    if services is not None and services.phase == "up":
        # What `atalaia up` keeps running here is used, unless the environment names other servers.
        defaults |= {
            "PREFECT_API_URL": f"{services.prefect_url}/api",
            "MLFLOW_TRACKING_URI": services.mlflow_url,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def quiet_terminal(layout: Layout) -> None:
    """The same, and Prefect's own lines go to a run's page only: at the terminal errors end as one line."""
    quiet_environment(layout)
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


class TemporaryServer:
    """A Prefect server on this machine's loopback that lives as long as this process."""

    def __init__(self, layout: Layout) -> None:
        self._log = layout.prefect / "server.log"
        self._port = _free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--log-level", "error", "--lifespan", "on"]
        environment = {**os.environ, "PREFECT_UI_API_URL": f"{self.address}/api", "PREFECT_API_URL": ""}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: Ctrl-C must reach the flow first, which still has to record that it was cancelled.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def wait(self) -> None:
        """Return when the server answers. Raises TrackingError when it does not start."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(URLError, OSError), urllib.request.urlopen(f"{self.address}/api/health", timeout=5):
                return
            time.sleep(0.1)
        self.stop()
        raise TrackingError(f"The temporary Prefect server did not start; its log is {self._log}.")

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def prefect_server(layout: Layout, meanwhile: Sequence[Step] = ()) -> Iterator[str]:
    """The API address of the server to use while the block runs, set in PREFECT_API_URL.

    A temporary server takes seconds to start, on one core: steps that are given `meanwhile` are taken in that time;
    none is begun any more when it answers. Import Prefect inside the block, or in a step.
    """
    quiet_environment(layout)
    named = os.environ.get("PREFECT_API_URL")
    if named:
        yield named
        return
    server = TemporaryServer(layout)
    os.environ["PREFECT_API_URL"] = f"{server.address}/api"
    os.environ[TEMPORARY] = "1"
    try:
        with beside(meanwhile, all_of_them=False):
            server.wait()
        yield os.environ["PREFECT_API_URL"]
    finally:
        _send_the_rest()
        del os.environ["PREFECT_API_URL"], os.environ[TEMPORARY]
        server.stop()


def _send_the_rest() -> None:
    """Wait until Prefect's threads have sent their last log lines and events; they would complain of a lost server."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
