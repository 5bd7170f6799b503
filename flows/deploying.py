"""Brings to a Prefect server what runs need there: `python -m flows.deploying` makes work pools, rules and deployments.

The server is the one named by PREFECT_API_URL. What is there already stays as it is, except that rules and deployments
become what is said here and in prefect.yaml.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import cast

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.services import HEARTBEAT_SECONDS, PROJECT

POOLS = {
    "cpu": "Runs on machines with or without a GPU: experiments, nightly training, detection.",
    "gpu": "Training on machines with a GPU; one worker a device, each with one run at a time.",
}
_SILENT_STATES = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused", "AwaitingRetry", "Scheduled")
"""A run in one of these gives no sign of life, and need not."""
_MOST_RUNS = 3
"""A run that crashed so often is left as it is: whatever ends it will end it again."""


def make_pools() -> None:
    """The work pools of prefect.yaml."""
    with get_client(sync_client=True) as client:
        for name, description in POOLS.items():
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))


def make_rules(lost_after: int) -> None:
    """The automations by which a run whose process died ends as Crashed, and is taken up again."""
    for rule in (_lost_runs_crash(lost_after), _crashed_runs_go_on()):
        try:
            found = cast(Automation, Automation.read(name=rule.name))
        except (ValueError, ObjectNotFound):
            rule.create()
            continue
        rule.id = found.id
        rule.update()


def _lost_runs_crash(lost_after: int) -> Automation:
    signs = {"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in _SILENT_STATES)}
    return Automation(
        name="Lost runs end as Crashed",
        description=f"A run without a sign of life for {lost_after} seconds (one is due every {HEARTBEAT_SECONDS}).",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect=signs,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=lost_after),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message=f"No sign of life for {lost_after} seconds: its process or machine died.",
                force=False,
            )
        ],
    )


def _crashed_runs_go_on() -> Automation:
    return Automation(
        name="Crashed runs go on",
        description=f"A deployed run that crashed starts again, {_MOST_RUNS} times in all; it goes on after its last "
        "finished stage and committed round.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification(
                {
                    "prefect.resource.id": ["prefect.flow-run.*"],
                    "prefect.run-count": [str(count) for count in range(_MOST_RUNS)],
                }
            ),
            match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, name="AwaitingRetry", message="It crashed; it goes on.", force=False
            )
        ],
    )


def deploy() -> int:
    """The deployments of prefect.yaml; the exit status of Prefect's own command."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    return subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Make everything; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploying", description=__doc__)
    parser.add_argument("--lost-after", type=int, default=180, help="seconds of silence after which a run is crashed")
    parser.add_argument("--no-deploy", action="store_true", help="work pools and rules only")
    given = parser.parse_args(arguments)
    if not os.environ.get("PREFECT_API_URL"):
        print("Set PREFECT_API_URL, for example http://127.0.0.1:4200/api; `atalaia up` starts a server.")
        return 2
    make_pools()
    make_rules(given.lost_after)
    return 0 if given.no_deploy else deploy()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
