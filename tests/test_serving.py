"""The registered detector behind MLflow's scoring server: raw lines in; scores, flags and reasons out; or why not."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_session import free_port, running, write_detector
from starlette.testclient import TestClient

from storage.answers import Answerer
from storage.datasets import HDFS_SIM
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.registry import load_detector, register_detector
from storage.tracking import log_run, tracking_uri


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    layout = Layout(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATALAIA_HOME", str(layout.home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield layout


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("log")
    generate(folder, 6, 0)
    return (folder / HDFS_SIM.raw_name).read_text().splitlines()


@pytest.fixture(scope="module")
def served(home: Layout, tiny_model: Path, lines: list[str]) -> str:
    """A registered detector that flags the windows of the highest scores."""
    first = write_detector(home.home / "first", tiny_model, home, noise=1.0)
    scores = sorted({window.score for window in Answerer(first).answer(lines)})
    threshold = (scores[-1] + scores[-2]) / 2
    folder = write_detector(home.home / "detector", tiny_model, home, noise=1.0, threshold=threshold)
    register_detector("served", log_run("r1", {}, [], {}, [], {}), folder, {})
    return "models:/served@challenger"


@pytest.fixture(scope="module")
def client(served: str) -> TestClient:
    """The scoring server's own application, in this process."""
    from mlflow.pyfunc import scoring_server

    return TestClient(scoring_server.init(load_detector(served)))


def test_raw_lines_are_answered_with_scores_flags_and_reasons(client: TestClient, lines: list[str]) -> None:
    answer = client.post("/invocations", json={"inputs": lines})
    assert answer.status_code == 200, answer.text
    windows = answer.json()["predictions"]
    assert len({window["key"] for window in windows}) == 6
    assert all(window["key"].startswith("blk_") for window in windows)
    assert {window["anomalous"] for window in windows} == {True, False}
    assert all(window["anomalous"] == (window["score"] > window["threshold"]) for window in windows)
    assert sum(window["lines"] for window in windows) >= len(lines)
    for window in windows:
        assert bool(window["reasons"]) == window["anomalous"]
        for reason in window["reasons"]:
            assert reason["surprise"] > 0
            assert reason["token"]
            assert window["key"] not in reason["text"]
    assert client.post("/invocations", json={"inputs": lines}).json() == answer.json()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": []}, "no lines to judge"),
        ({"inputs": ["", "  "]}, "no lines to judge"),
        ({"inputs": ["this is no line of the form"]}, "<Date> <Time> <Pid>"),
        ({"inputs": ["081109 203615 148 INFO dfs.DataNode: no block is named here"]}, "window"),
        ({"inputs": [1, 2]}, "str"),
        ({"inputs": "one line"}, "list"),
        ({"lines": ["x"]}, "inputs"),
    ],
)
def test_a_bad_request_is_answered_with_400_and_the_reason(client: TestClient, body: Any, reason: str) -> None:  # noqa: ANN401
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["message"]


def test_a_request_that_is_refused_is_not_repeated_in_the_answer(client: TestClient) -> None:
    secret = "session of alice at 10.0.0.1 " * 100
    answer = client.post("/invocations", json={"inputs": [secret]})
    assert "alice" not in answer.text
    assert client.post("/invocations", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.post("/invocations", content=b"x", headers={"content-type": "text/plain"}).status_code == 415


def test_another_base_model_than_the_detectors_is_the_servers_fault(
    home: Layout, tiny_model: Path, lines: list[str]
) -> None:
    from mlflow.exceptions import MlflowException

    from storage.detector import Detector

    model = {"name": str(tiny_model), "sha256": "0" * 64, "quantization": "none"}
    folder = write_detector(home.home / "other", tiny_model, home, model=model)
    detector = Detector()
    context = type("Context", (), {"artifacts": {path.name: str(path) for path in folder.iterdir()}})
    detector.load_context(context)
    with pytest.raises(MlflowException, match="other weights") as caught:
        detector.predict(None, lines)
    assert caught.value.get_http_status_code() == 500


@pytest.mark.long
def test_mlflow_models_serve_answers_over_http(served: str, home: Layout, lines: list[str], tmp_path: Path) -> None:
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "mlflow"),
        "models",
        "serve",
        "--model-uri",
        served,
        "--port",
        str(port),
    ]
    address = f"http://127.0.0.1:{port}"
    environment = {"MLFLOW_TRACKING_URI": tracking_uri(home), "ATALAIA_HOME": str(home.home)}
    with running([*command, "--env-manager", "local"], f"{address}/ping", tmp_path / "serve.log", **environment):
        answer = _post(f"{address}/invocations", {"inputs": lines})
        assert len(answer["predictions"]) == 6
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(f"{address}/invocations", {"inputs": ["no line of the form"]})
        assert refused.value.code == 400
        assert "<Date>" in json.loads(refused.value.read())["message"]


def _post(address: str, body: Any) -> Any:  # noqa: ANN401
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())
