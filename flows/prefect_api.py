"""The few questions asked of a Prefect server without importing Prefect, which takes seconds."""

import base64
import json
import os
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import Any

_SECONDS = 10.0


def answers(address: str) -> bool:
    """Whether a server answers there, and well."""
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def ask(prefect_url: str, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The answer of Prefect's API at `path` to a posted body; raises OSError where there is none."""
    headers = {"Content-Type": "application/json"}
    secret = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if secret:
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    request = urllib.request.Request(f"{prefect_url}/api/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        return json.load(answer)


def worker_online(prefect_url: str, pool: str, name: str, since: float) -> bool:
    """Whether a worker has given a sign of life after `since` (epoch)."""
    try:
        found = ask(prefect_url, f"work_pools/{pool}/workers/filter", {})
    except (OSError, ValueError):
        return False
    times = [worker["last_heartbeat_time"] for worker in found if worker["name"] == name]
    return any(time and datetime.fromisoformat(time).timestamp() >= since for time in times)


def last_runs(prefect_url: str, number: int) -> list[dict[str, Any]]:
    """The flow runs that started last, newest first, with the name of their flow; none where Prefect is silent."""
    body = {
        "sort": "START_TIME_DESC",
        "limit": number,
        "flow_runs": {"operator": "and_", "start_time": {"is_null_": False}, "parent_task_run_id": {"is_null_": True}},
    }
    try:
        runs = ask(prefect_url, "flow_runs/filter", body)
        flows = ask(prefect_url, "flows/filter", {"flows": {"id": {"any_": [run["flow_id"] for run in runs]}}})
    except (OSError, ValueError):
        return []
    names = {flow["id"]: flow["name"] for flow in flows}
    return [
        {
            "id": run["id"],
            "name": run["name"],
            "flow": names.get(run["flow_id"], "?"),
            "state": run["state_name"],
            "started": run["start_time"],
            "seconds": run["total_run_time"],
            "page": f"{prefect_url}/runs/flow-run/{run['id']}",
        }
        for run in runs
    ]
