"""Deployments: what prefect.yaml names exists and fits, and a scheduled run goes through a real worker."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.responses import DeploymentResponse
from prefect.utilities.callables import parameter_schema

from flows.config import RunConfig
from flows.deploying import kept
from flows.presets import PRESETS
from flows.server import TemporaryServer, quiet_environment
from flows.services import DEPLOY, PlatformSettings, services_of
from flows.train import GPU_DEPLOYMENT, GPU_POOL, train
from storage.layout import Layout

ROOT = Path(__file__).resolve().parent.parent
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def _flow(deployment: dict[str, Any]) -> Flow[Any, Any]:
    module, _, name = deployment["entrypoint"].rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_names_a_flow_by_module_with_parameters_that_fit(deployment: dict[str, Any]) -> None:
    assert _flow(deployment).validate_parameters(deployment["parameters"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployments_form_describes_every_parameter_and_every_part_of_it(deployment: dict[str, Any]) -> None:
    schema = parameter_schema(_flow(deployment))
    # A part that refers to a definition is described there.
    parts = {"": {"properties": schema.properties}, **(schema.definitions or {})}
    bare = [
        f"{name}.{field}"
        for name, part in parts.items()
        for field, facts in part.get("properties", {}).items()
        if "description" not in facts and "description" not in parts.get(facts.get("$ref", "").split("/")[-1], {})
    ]
    assert bare == []


def _filled_in(properties: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """What a form sends of fields that nobody touched: their defaults, and those of the fields within them."""
    found = {}
    for name, field in properties.items():
        if "default" in field:
            found[name] = field["default"]
        elif "$ref" in field and (inner := _filled_in(parts[field["$ref"].split("/")[-1]]["properties"], parts)):
            found[name] = inner
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_form_fills_in_by_itself_changes_no_preset(preset: str) -> None:
    for deployment in DEPLOYMENTS:
        schema = parameter_schema(_flow(deployment))
        if "RunConfig" in (schema.definitions or {}):
            sent = _filled_in(schema.definitions["RunConfig"]["properties"], schema.definitions)
            assert RunConfig.model_validate({**sent, "preset": preset}) == RunConfig.model_validate({"preset": preset})


def test_what_runs_when_and_where() -> None:
    found = {d["name"]: (d["entrypoint"], d["work_pool"]["name"]) for d in DEPLOYMENTS}
    assert found == {
        "experiment": ("flows.experiment.experiment", "cpu"),
        "train": ("flows.train.train", GPU_POOL),
        "train-cpu": ("flows.train.train", "cpu"),
        "nightly-retrain": ("flows.nightly.nightly_retrain", "cpu"),
        "detect-hourly": ("flows.detect.detect", "cpu"),
        "weekly-sweep": ("flows.sweep.sweep", "cpu"),
        "federate": ("flows.federate.federate", "cpu"),
    }
    assert {d["name"]: d["schedules"] for d in DEPLOYMENTS if "schedules" in d} == {
        "experiment": [{"cron": "0 1 * * 6", "timezone": "UTC"}],
        "nightly-retrain": [{"cron": "0 3 * * *", "timezone": "UTC"}],
        "detect-hourly": [{"interval": 3600, "active": False}],
        "weekly-sweep": [{"cron": "0 5 * * 0", "timezone": "UTC", "active": False}],
    }


def test_no_two_runs_of_a_deployment_train_at_the_same_time_and_a_late_night_is_left_out() -> None:
    rules = {d["name"]: d["concurrency_limit"] for d in DEPLOYMENTS}
    assert {rule["limit"] for rule in rules.values()} == {1}
    assert {name: rule["collision_strategy"] for name, rule in rules.items()} == {
        "experiment": "ENQUEUE",
        "train": "ENQUEUE",
        "train-cpu": "ENQUEUE",
        "nightly-retrain": "CANCEL_NEW",
        "detect-hourly": "CANCEL_NEW",
        "weekly-sweep": "CANCEL_NEW",
        "federate": "CANCEL_NEW",
    }


def test_the_manual_says_which_deployments_have_late_runs_wait() -> None:
    waiting = [d["name"] for d in DEPLOYMENTS if d["concurrency_limit"]["collision_strategy"] == "ENQUEUE"]
    said = re.search(r"still runs\s+waits \((.+?)\) or is left\s+out", (ROOT / "docs" / "operations.md").read_text())
    assert said is not None
    assert re.findall("`(.+?)`", said[1]) == waiting


def test_an_experiment_hands_training_to_the_deployment_of_the_gpu_pool() -> None:
    [deployment] = [d for d in DEPLOYMENTS if d["work_pool"]["name"] == GPU_POOL]
    assert f"{train.name}/{deployment['name']}" == GPU_DEPLOYMENT


def _there(**parameters: object) -> DeploymentResponse:
    return DeploymentResponse(name="night", flow_id=uuid4(), parameters=parameters, paused=True)


def test_a_deployment_that_is_there_keeps_what_was_set_and_gets_what_is_new() -> None:
    entry = {"name": "night", "tags": ["new"], "parameters": {"source": "file's", "least": 1}, "schedules": [{}]}
    schema = {"type": "object", "properties": {"source": {"type": "string"}, "least": {"type": "integer"}}}
    told = kept(entry, _there(source="/var/log/mine", gone=1), schema)
    assert told["parameters"] == {"source": "/var/log/mine", "least": 1}
    assert told["paused"]
    assert "schedules" not in told
    assert told["tags"] == ["new"]
    assert told["enforce_parameter_schema"]


def test_a_kept_parameter_that_does_not_fit_any_more_is_kept_and_told_and_stops_no_deployment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    schema = {"type": "object", "properties": {"least": {"type": "integer"}}}
    told = kept({"name": "night", "parameters": {"least": 1}}, _there(least="many"), schema)
    assert told["parameters"] == {"least": "many"}
    assert not told["enforce_parameter_schema"]
    assert capsys.readouterr().out.startswith("night: its parameters do not fit this version")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a fresh Prefect server on this machine, and of what talks to it."""
    layout = Layout(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(layout.prefect))
    # A run must be entered before its time comes; the usual minute between two looks at the schedules could miss it.
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS", "3")
    quiet_environment(layout)
    started = TemporaryServer(layout)
    started.wait()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield {**os.environ, "PATH": path, "PREFECT_API_URL": f"{started.address}/api", "ATALAIA_HOME": str(tmp_path)}
    started.stop()


@pytest.mark.long
def test_make_deploy_brings_its_pools_to_a_fresh_server_and_may_run_again(server: dict[str, str]) -> None:
    for _ in range(2):
        _make_deploy(server)
    pools = _post(server, "work_pools/filter", {})
    assert {(pool["name"], pool["type"]) for pool in pools} == {("cpu", "process"), ("gpu", "process")}
    assert {found["name"] for found in _post(server, "deployments/filter", {})} == {d["name"] for d in DEPLOYMENTS}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_up_again_keeps_parameters_and_schedules_and_make_deploy_brings_those_of_the_file(
    server: dict[str, str],
) -> None:
    def deployment() -> dict[str, Any]:
        found: dict[str, Any] = _post(server, "deployments/filter", {"deployments": {"name": {"any_": [name]}}})[0]
        return found

    def schedules() -> list[tuple[float, bool]]:
        return [(each["schedule"]["interval"], each["active"]) for each in deployment()["schedules"]]

    name = "detect-hourly"
    _bring_deployments(server)
    of_the_file = deployment()["parameters"]
    mine = {"config": {**of_the_file["config"], "files": ["/var/log/mine.log"]}}
    path = f"deployments/{deployment()['id']}"
    _patch(server, path, {"parameters": mine, "description": "old", "paused": True})
    _patch(server, f"{path}/schedules/{deployment()['schedules'][0]['id']}", {"active": True})
    _bring_deployments(server)
    assert deployment()["parameters"] == mine
    assert schedules() == [(3600.0, True)]
    assert deployment()["paused"]
    assert deployment()["description"] != "old"
    assert deployment()["enforce_parameter_schema"]
    _make_deploy(server)
    assert deployment()["parameters"] == of_the_file
    assert schedules() == [(3600.0, False)]


def _bring_deployments(environment: dict[str, str]) -> None:
    """What `atalaia up` does each time."""
    layout = Layout(Path(environment["ATALAIA_HOME"]))
    [step] = [found for found in services_of(PlatformSettings(), layout, 0) if found.name == DEPLOY]
    subprocess.run(step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True)


def _make_deploy(environment: dict[str, str]) -> None:
    """What `make deploy` does with the programs of this environment, without setting one up."""
    done = subprocess.run(
        ["make", "deploy", "READY=", f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_a_scheduled_experiment_runs_through_a_worker_and_registers_its_detector(
    server: dict[str, str], tiny_model: Path
) -> None:
    _make_deploy(server)
    deployment = _post(server, "deployments/filter", {"deployments": {"name": {"any_": ["experiment"]}}})[0]
    small = {"model": {"name": str(tiny_model)}, "dataset": {"blocks": 300}, "federation": {"rounds": 1}}
    schedule = {"schedule": {"interval": 3600, "anchor_date": _soon(20)}, "active": True}
    schedule["parameters"] = {"config": {"preset": "demo", **small}}
    _post(server, f"deployments/{deployment['id']}/schedules", [schedule])
    worker = subprocess.Popen(
        ["prefect", "worker", "start", "--pool", "cpu"], env=server, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        run = _finished_run(server, deployment["id"])
    finally:
        worker.terminate()
        worker.wait(timeout=60)
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["auto_scheduled"]
    versions = list((Path(server["ATALAIA_HOME"]) / "stages" / "register").glob("*/version.json"))
    assert [json.loads(path.read_text())["version"] for path in versions] == ["1"]


def _soon(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def _finished_run(environment: dict[str, str], deployment: str) -> dict[str, Any]:
    wanted = {
        "flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}
    }
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if found := _post(environment, "flow_runs/filter", wanted):
            return dict(found[0])
        time.sleep(2)
    runs = _post(environment, "flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}})
    raise AssertionError([(run["state_name"], run["expected_start_time"]) for run in runs])


def _post(environment: dict[str, str], path: str, body: object) -> Any:  # noqa: ANN401
    return json.loads(_sent(environment, path, body, "POST"))


def _patch(environment: dict[str, str], path: str, body: object) -> None:
    _sent(environment, path, body, "PATCH")


def _sent(environment: dict[str, str], path: str, body: object, method: str) -> bytes:
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())
