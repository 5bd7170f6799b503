"""Brings to a Prefect server what runs need there: `python -m flows.deploying` makes work pools and deployments.

The server is the one named by PREFECT_API_URL. What is there already stays as it is, except that deployments become
what prefect.yaml says.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.services import PROJECT

POOLS = {
    "cpu": "Runs on machines with or without a GPU: experiments, nightly training, detection.",
    "gpu": "Training on machines with a GPU; one worker a device, each with one run at a time.",
}
_FORMER_RULES = ("Lost runs end as Crashed", "Crashed runs go on")


def make_pools() -> None:
    """The work pools of prefect.yaml."""
    with get_client(sync_client=True) as client:
        for name, description in POOLS.items():
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))


def forget_rules() -> None:
    """Delete the automations by which earlier versions had lost runs crash and go on; flows/watcher.py does it now."""
    for name in _FORMER_RULES:
        with suppress(ValueError, ObjectNotFound):
            cast(Automation, Automation.read(name=name)).delete()


def deploy() -> int:
    """The deployments of prefect.yaml; the exit status of Prefect's own command."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    return subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Make everything; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploying", description=__doc__)
    parser.add_argument("--no-deploy", action="store_true", help="work pools only")
    given = parser.parse_args(arguments)
    if not os.environ.get("PREFECT_API_URL"):
        print("Set PREFECT_API_URL, for example http://127.0.0.1:4200/api; `atalaia up` starts a server.")
        return 2
    make_pools()
    forget_rules()
    return 0 if given.no_deploy else deploy()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
