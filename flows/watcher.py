"""Notices runs whose process or machine died, and has deployed ones go on: `python -m flows.watcher`.

Prefect's automations could be told the same, but its server holds an event back until the one that it follows was seen
(prefect.server.events.ordering): for 15 minutes where that one never comes, as for whatever a schedule entered, and for
what a restarted server has forgotten. Here the states themselves are asked for.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.prefect_api import ask

MOST_RUNS = 3
"""A run that crashed so often is left as it is: whatever ends it will end it again."""
_LOOK_SECONDS = 10.0
_STARTING = 4
"""Times the patience that a run gets from being taken by a worker to its first sign of life."""
_REMEMBERED = timedelta(days=1)
"""What crashed longer ago is left alone: somebody has seen it, or nobody needs it."""
_MOST = 200

Run = Mapping[str, Any]
"""A flow run as Prefect's API gives it."""


def is_lost(run: Run, last_sign: datetime | None, answering: datetime, now: datetime, patience: timedelta) -> bool:
    """Whether a run's process must be dead: nothing was heard of it for so long, though it would have told.

    One that never told anything may be started with settings by which it does not, so it is left alone; a sign is due
    as soon as it runs. Before `answering`, Prefect did not answer, and no run could tell it anything.
    """
    since = max(answering, datetime.fromisoformat(run["state"]["timestamp"]))
    if run["state_type"] == "PENDING":
        return run["deployment_id"] is not None and now - since > _STARTING * patience
    return last_sign is not None and now - max(since, last_sign) > patience


def goes_on(run: Run, now: datetime) -> bool:
    """Whether a crashed run is started again: one of a deployment, not too often, and not what is long forgotten."""
    recent = now - datetime.fromisoformat(run["state"]["timestamp"]) < _REMEMBERED
    return run["deployment_id"] is not None and run["run_count"] < MOST_RUNS and recent


def look(prefect_url: str, answering: datetime, patience: timedelta) -> list[str]:
    """Look at all runs once, and set right what is wrong; a line for each. Raises OSError where Prefect is silent."""
    now, told = datetime.now(UTC), []
    for run in _runs(prefect_url, "RUNNING", "PENDING"):
        if is_lost(run, _last_sign(prefect_url, run), answering, now, patience):
            reason = f"No sign of life for {patience.total_seconds():.0f} seconds: its process or machine died."
            _set_state(prefect_url, run, "CRASHED", "Crashed", reason)
            told.append(f"{run['name']}: {reason}")
    for run in _runs(prefect_url, "CRASHED"):
        if goes_on(run, now):
            _set_state(prefect_url, run, "SCHEDULED", "AwaitingRetry", "It crashed; it goes on.")
            told.append(f"{run['name']}: it crashed; it goes on.")
    return told


def _runs(prefect_url: str, *states: str) -> list[Run]:
    body = {"flow_runs": {"state": {"type": {"any_": states}}}, "sort": "START_TIME_DESC", "limit": _MOST}
    found: list[Run] = ask(prefect_url, "flow_runs/filter", body)
    return found


def _last_sign(prefect_url: str, run: Run) -> datetime | None:
    """When Prefect last received a sign of life of this execution of the run, by its own clock."""
    wanted = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run['id']}"]},
        "occurred": {"since": run["state"]["timestamp"]},
        "order": "DESC",
    }
    found = ask(prefect_url, "events/filter", {"filter": wanted, "limit": 1})["events"]
    return datetime.fromisoformat(found[0]["received"]) if found else None


def _set_state(prefect_url: str, run: Run, kind: str, name: str, message: str) -> None:
    """Propose a state; Prefect refuses where the run has ended in the meantime."""
    state = {"type": kind, "name": name, "message": message}
    ask(prefect_url, f"flow_runs/{run['id']}/set_state", {"state": state, "force": False})


def _say(line: str) -> None:
    with suppress(OSError):  # a full disk must not end the watch
        print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Look again and again, until ended from outside; the exit status where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m flows.watcher", description=__doc__)
    parser.add_argument("--lost-after", type=int, default=180, help="seconds of silence after which a run is crashed")
    patience = timedelta(seconds=parser.parse_args(arguments).lost_after)
    address = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    if not address:
        print("Set PREFECT_API_URL, for example http://127.0.0.1:4200/api; `atalaia up` starts a server.")
        return 2
    answering = datetime.now(UTC)
    while True:
        try:
            for line in look(address, answering, patience):
                _say(line)
        except OSError as error:
            _say(f"Prefect does not answer: {error}")
            answering = datetime.now(UTC)
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
