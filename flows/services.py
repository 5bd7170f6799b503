"""The services of one machine: what each is started by, what it needs, and how one sees that it is well."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from flows.prefect_api import answers, worker_online
from flows.server import HEARTBEAT_SECONDS, quiet_environment
from storage.databases import Databases, databases
from storage.layout import Layout

PROJECT = Path(__file__).resolve().parent.parent
PREFECT, MLFLOW, DEPLOY = "prefect", "mlflow", "deploy"
DATABASE_VARIABLE = "ATALAIA_DATABASE"
"""Names the database where no option does; kept from the workers, whose runs need no password of it."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_EVERYWHERE = {"0.0.0.0", "::"}


class PlatformSettings(BaseModel):
    """What `atalaia up` starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address that Prefect and MLflow listen at."""
    prefect_port: int = Field(default=4200, gt=0, lt=65536)
    """Prefect's port."""
    mlflow_port: int = Field(default=5000, gt=0, lt=65536)
    """MLflow's port."""
    database: str | None = None
    """A PostgreSQL database for both servers; None: SQLite files under the home folder."""
    gpu: bool | None = None
    """Whether to start workers of the gpu pool; None: one for each GPU there is."""
    cpu_runs: int = Field(default=2, gt=0)
    """Flow runs that the worker of the cpu pool takes at the same time."""
    deploy: bool = True
    """Whether to bring the deployments of prefect.yaml to the server."""
    lost_after: int = Field(default=180, ge=60)
    """Seconds without a sign of life after which a flow run counts as crashed."""

    @property
    def open_to_others(self) -> bool:
        """Whether other machines can reach the servers."""
        return self.host not in _LOOPBACK

    @property
    def local_name(self) -> str:
        """The name by which this machine's own processes reach the servers."""
        return "127.0.0.1" if self.host in _EVERYWHERE else f"[{self.host}]" if ":" in self.host else self.host

    @property
    def public_name(self) -> str:
        """The name by which browsers reach the servers."""
        return socket.gethostname() if self.host in _EVERYWHERE else self.local_name

    @property
    def prefect_url(self) -> str:
        """Prefect's pages."""
        return f"http://{self.local_name}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's pages and API."""
        return f"http://{self.local_name}:{self.mlflow_port}"


@dataclass(frozen=True)
class Service:
    """A process to keep running, or a step to run once."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    answers: Callable[[float], bool] = lambda started: True
    """Whether it is well, given the time (epoch) it was started."""
    needs: tuple[str, ...] = ()
    """Services that must be well before it starts."""
    address: str | None = None
    once: bool = False
    """Whether it is a step that ends."""
    watched: bool = True
    """Whether to ask again once it was well; a worker's answer would come from Prefect, which may be silent itself."""


def services_of(settings: PlatformSettings, layout: Layout, gpus: int) -> tuple[Service, ...]:
    """The services in the order in which they start."""
    tables = databases(settings.database, layout)
    first = (_prefect(settings, tables), _mlflow(settings, tables, layout), _deploy(settings))
    workers = [_worker(settings, "cpu", "worker-cpu", settings.cpu_runs, {})]
    for index in range(gpus):
        # A device each: two runs on one device would share its memory and time.
        workers.append(_worker(settings, "gpu", f"worker-gpu-{index}", 1, _device(index)))
    return (*first, *workers, _watcher(settings))


def _device(index: int) -> dict[str, str]:
    """The environment in which only one device is visible."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[index] if index < len(visible) else str(index)}


def shared_environment(settings: PlatformSettings, layout: Layout) -> dict[str, str]:
    """What all services read beside `quiet_environment`: where the servers answer, signs of life, no telemetry."""
    quiet_environment(layout)
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    inherited = {name: value for name, value in os.environ.items() if name != DATABASE_VARIABLE}
    return {
        **inherited,
        **({"PREFECT_API_AUTH_STRING": password} if password else {}),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "ATALAIA_HOME": str(layout.home),
        "PREFECT_API_URL": f"{settings.prefect_url}/api",
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        # "Finished in state Completed()" for each task without its name; stages have lines of their own.
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING",
    }


def _prefect(settings: PlatformSettings, tables: Databases) -> Service:
    command = (sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app")
    listening = ("--host", settings.host, "--port", str(settings.prefect_port))
    environment = {
        # The server itself has no server to ask.
        "PREFECT_API_URL": "",
        # Where browsers find the API; behind a proxy that is for the environment to say.
        "PREFECT_UI_API_URL": os.environ.get(
            "PREFECT_UI_API_URL", f"http://{settings.public_name}:{settings.prefect_port}/api"
        ),
        "PREFECT_API_DATABASE_CONNECTION_URL": tables.prefect,
        # Defaults of 10 and 5 seconds fail on a machine that trains at the same time.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "30",
    }
    if tables.prefect_schemas:
        environment["PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH"] = tables.prefect_schemas
    return Service(
        PREFECT,
        (*command, *listening, "--log-level", "warning", "--lifespan", "on", "--timeout-graceful-shutdown", "5"),
        environment,
        lambda _: answers(f"{settings.prefect_url}/api/health"),
        address=settings.prefect_url,
    )


def _mlflow(settings: PlatformSettings, tables: Databases, layout: Layout) -> Service:
    names = dict.fromkeys(("localhost", "127.0.0.1", settings.local_name, settings.public_name))
    environment = {
        "MLFLOW_HOST": settings.host,
        # In the environment, not among the arguments: there everybody on the machine could read a password.
        "MLFLOW_BACKEND_STORE_URI": tables.mlflow,
        "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get(
            "MLFLOW_SERVER_ALLOWED_HOSTS", ",".join(f"{name}:*" for name in names)
        ),
        # The server would look for its own tables behind this name.
        "MLFLOW_TRACKING_URI": "",
        # No helpers that wait for jobs of a kind that is not used here.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    script = str(PROJECT / "mlflow" / "start.sh")
    return Service(
        MLFLOW,
        ("sh", script, str(layout.mlflow), str(settings.mlflow_port)),
        environment,
        lambda _: answers(f"{settings.mlflow_url}/health"),
        address=settings.mlflow_url,
    )


def _deploy(settings: PlatformSettings) -> Service:
    option = "--keep" if settings.deploy else "--no-deploy"
    return Service(DEPLOY, (sys.executable, "-m", "flows.deploying", option), needs=(PREFECT,), once=True)


def _worker(settings: PlatformSettings, pool: str, name: str, limit: int, environment: dict[str, str]) -> Service:
    full_name = f"{name}@{socket.gethostname()}"
    command = (sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--type", "process")
    return Service(
        name,
        (*command, "--pool", pool, "--name", full_name, "--limit", str(limit)),
        environment,
        lambda started: worker_online(settings.prefect_url, pool, full_name, started),
        # MLflow too: a run's last step would not find it.
        needs=(PREFECT, MLFLOW, DEPLOY),
        watched=False,
    )


def _watcher(settings: PlatformSettings) -> Service:
    command = (sys.executable, "-m", "flows.watcher", "--lost-after", str(settings.lost_after))
    return Service("watcher", command, needs=(PREFECT,), watched=False)


def gpus_of_this_machine() -> tuple[int, str]:
    """How many GPUs the training could use here, and why none; asked in a process of its own, as PyTorch is large."""
    command = [sys.executable, "-m", "fl.devices"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return 0, f"PyTorch could not be asked for GPUs ({(done.stderr.strip().splitlines() or ['no reason'])[-1]})"
    number, reason = json.loads(done.stdout)
    return int(number), str(reason)
