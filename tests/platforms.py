"""What tests of running services share: the command line with a home of its own, and questions to Prefect."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_MEANT_FOR_OTHERS = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "ATALAIA_DATABASE")


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    """The answer of Prefect's API."""
    request = urllib.request.Request(
        f"{prefect_url}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def get(prefect_url: str, path: str) -> Any:  # noqa: ANN401
    """What lies at a path of Prefect's API."""
    with urllib.request.urlopen(f"{prefect_url}/api/{path}", timeout=60) as answer:
        return json.load(answer)


def eventually(seconds: float, found: Callable[[], Any], what: str) -> Any:  # noqa: ANN401
    """The first thing found that is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(1)
    raise AssertionError(f"not within {seconds:.0f} seconds: {what}")
