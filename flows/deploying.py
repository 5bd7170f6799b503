"""Brings to a Prefect server what runs need there: `python -m flows.deploying` makes work pools and deployments.

The server is the one named by PREFECT_API_URL. Work pools that are there stay as they are; deployments become what
prefect.yaml says, with `--keep` except for the parameters and schedules of those that are there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.services import PROJECT

POOLS = {
    "cpu": "Runs on machines with or without a GPU: experiments, nightly training, detection.",
    "gpu": "Training on machines with a GPU; one worker a device, each with one run at a time.",
}
PREFECT_FILE = PROJECT / "prefect.yaml"
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


def deploy(file: Path) -> int:
    """The deployments of a file like prefect.yaml; the exit status of Prefect's own command."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    return subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, check=False).returncode


def deploy_keeping() -> int:
    """As `deploy` of prefect.yaml, but deployments that are there keep what people set on their pages.

    It is in what Prefect is told, not put back afterwards: an end in between must not lose it.
    """
    described = yaml.safe_load(PREFECT_FILE.read_text())
    described["deployments"] = [_with_kept(entry) for entry in described["deployments"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PREFECT_FILE.name
        file.write_text(yaml.safe_dump(described, allow_unicode=True))
        return deploy(file)


def _with_kept(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"])
    with get_client(sync_client=True) as client:
        try:
            there = client.read_deployment_by_name(f"{flow.name}/{entry['name']}")
        except ObjectNotFound:
            return entry
    return kept(entry, there, parameter_schema(flow).model_dump_for_openapi())


def kept(entry: Mapping[str, Any], there: DeploymentResponse, schema: dict[str, Any]) -> dict[str, Any]:
    """An entry of prefect.yaml as Prefect is told it where the deployment is there: with its parameters and its pause.

    Prefect leaves schedules alone that it is told nothing of. `schema` describes the flow's parameters as they are now:
    those that are gone are left out, new ones are the entry's. Prefect would refuse the whole deployment where a kept
    value does not fit any more, so it is told not to check then; a run says what is wrong.
    """
    known = {name: value for name, value in there.parameters.items() if name in schema["properties"]}
    parameters = {**entry.get("parameters", {}), **known}
    told = {key: value for key, value in entry.items() if key != "schedules"}
    checked = _fit(entry["name"], parameters, schema)
    return {**told, "parameters": parameters, "paused": there.paused, "enforce_parameter_schema": checked}


def _fit(name: str, parameters: dict[str, Any], schema: dict[str, Any]) -> bool:
    try:
        validate(parameters, schema, raise_on_error=True, ignore_required=True)
    except ValidationError as error:
        print(f"{name}: its parameters do not fit this version ({error}). Set them anew in its form.")
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Make everything; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploying", description=__doc__)
    parser.add_argument("--no-deploy", action="store_true", help="work pools only")
    parser.add_argument(
        "--keep", action="store_true", help="leave parameters and schedules of deployments that are there"
    )
    given = parser.parse_args(arguments)
    if not os.environ.get("PREFECT_API_URL"):
        print("Set PREFECT_API_URL, for example http://127.0.0.1:4200/api; `atalaia up` starts a server.")
        return 2
    make_pools()
    forget_rules()
    if given.no_deploy:
        return 0
    return deploy_keeping() if given.keep else deploy(PREFECT_FILE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
