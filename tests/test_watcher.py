"""Runs whose process died are noticed, others are left alone, and what crashed goes on a few times."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Running

from fl.errors import FederationError
from flows import train, watcher
from flows.config import RunConfig
from flows.watcher import MOST_RUNS, goes_on, is_lost, look

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)
PATIENCE = timedelta(seconds=180)


def _run(state: str = "RUNNING", since: float = 1000, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A run that has been in a state for so many seconds."""
    told = {"type": state, "timestamp": (NOW - timedelta(seconds=since)).isoformat()}
    facts = {"id": "r", "name": "night", "state_type": state, "state": told, "deployment_id": "d", "run_count": 1}
    return facts | changes


def _ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("run", "sign", "lost"),
    [
        (_run(), _ago(181), True),
        (_run(), _ago(179), False),
        (_run(since=179), _ago(500), False),
        # Started with other settings: it never says anything.
        (_run(), None, False),
        (_run(deployment_id=None), _ago(181), True),
        # A worker has taken it and died; or is slow to start it.
        (_run("PENDING", since=719), None, False),
        (_run("PENDING", since=721), None, True),
        (_run("PENDING", since=721, deployment_id=None), None, False),
    ],
)
def test_a_run_is_lost_when_it_is_silent_though_it_would_have_told(
    run: dict[str, Any], sign: datetime | None, lost: bool
) -> None:
    assert is_lost(run, sign, LONG_AGO, NOW, PATIENCE) == lost


def test_no_run_is_lost_because_prefect_was_silent_itself() -> None:
    assert not is_lost(_run(), _ago(500), _ago(179), NOW, PATIENCE)
    assert is_lost(_run(), _ago(500), _ago(181), NOW, PATIENCE)


@pytest.mark.parametrize(
    ("changes", "again"),
    [({}, True), ({"run_count": MOST_RUNS}, False), ({"deployment_id": None}, False), ({"since": 90_000}, False)],
)
def test_a_crashed_run_goes_on_if_it_is_a_deployments_and_not_too_often(changes: dict[str, Any], again: bool) -> None:
    assert goes_on(_run("CRASHED", **changes), NOW) == again


def test_what_is_lost_crashes_and_what_crashed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def answer(url: str, path: str, body: Any) -> Any:  # noqa: ANN401
        asked.append((path, body))
        if path == "flow_runs/filter":
            wanted = body["flow_runs"]["state"]["type"]["any_"]
            silent = _run(id="silent", deployment_id="d")
            return [run for run in (silent, _run("CRASHED", id="crashed", since=-1e9)) if run["state_type"] in wanted]
        return {"events": [{"received": (NOW - timedelta(days=1)).isoformat()}]}

    monkeypatch.setattr(watcher, "ask", answer)
    assert len(look("http://prefect", LONG_AGO, PATIENCE)) == 2
    states = {path.split("/")[1]: body["state"]["type"] for path, body in asked if path.endswith("set_state")}
    assert states == {"silent": "CRASHED", "crashed": "SCHEDULED"}
    assert not any(body["force"] for path, body in asked if path.endswith("set_state"))


def _train_with_a_worker_whose_run_is(states: list[tuple[State[Any], int]], monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Training handed to the gpu pool, where the run is found in one state, at one execution of it, after the other."""
    facts = {"id": uuid4(), "flow_id": uuid4(), "deployment_id": uuid4()}
    runs = iter([FlowRun(**facts, state=state, run_count=count) for state, count in states])

    @contextmanager
    def client(*, sync_client: bool) -> Iterator[Any]:
        yield SimpleNamespace(read_flow_run=lambda run_id: next(runs))

    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "deployed")
    monkeypatch.setattr(train, "online", lambda pool: True)
    monkeypatch.setattr(train, "run_deployment", lambda name, parameters: next(runs))
    monkeypatch.setattr(train, "get_client", client)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(train, "train_adapters", lambda *given: "trained")
    prepared: Any = None
    return train.train_where_possible(RunConfig.model_validate({"preset": "demo"}), prepared, "run")


def test_training_that_crashed_at_a_worker_is_waited_for_while_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [(Crashed(), 1), (AwaitingRetry(), 1), (Running(), 2), (Crashed(), 2), (Running(), 3), (Completed(), 3)]
    assert _train_with_a_worker_whose_run_is(states, monkeypatch) == "trained"


@pytest.mark.parametrize("end", [(Crashed(), MOST_RUNS), (Failed(), 1)])
def test_training_that_ended_for_good_at_a_worker_is_an_error(
    end: tuple[State[Any], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FederationError, match="Training in the pool gpu ended as"):
        _train_with_a_worker_whose_run_is([end], monkeypatch)
