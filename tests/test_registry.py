"""Registered detectors: names, aliases, promotion and going back, in the default store and on a real server."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import urllib.request
from pathlib import Path

import pytest
from mlflow_session import tracking_server, write_detector

from storage.errors import RegistryError
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Version,
    detector_folder,
    find_version,
    load_detector,
    make_champion,
    model_names,
    only_name,
    register_detector,
    registered_name,
    roll_back,
    versions_of,
)
from storage.tracking import log_run, tracking_client, tracking_uri


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def detector(home: Layout, tiny_model: Path) -> Path:
    return write_detector(home.home / "detector", tiny_model, home)


@pytest.fixture(autouse=True)
def _default_store(home: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ATALAIA_HOME", str(home.home))


def _aliases(name: str) -> dict[str, str]:
    return {alias: row.version for row in versions_of(name) for alias in row.aliases}


def _three(name: str) -> list[Version]:
    """Versions 1 to 3 of a model; where an alias points does not depend on what a version holds."""
    client = tracking_client()
    client.create_registered_model(name, tags={"made_by": "atalaia"})
    for _ in range(3):
        client.create_model_version(name, "file:///nowhere")
    return list(reversed(versions_of(name)))


def test_a_name_keeps_what_models_can_be_called_by() -> None:
    assert registered_name("hdfs") == "hdfs"
    assert registered_name("hdfs-sim") == "hdfs-sim"
    assert registered_name("shop: orders/eu @night") == "shop-orders-eu-night"
    assert registered_name("///") == "detector"


def test_a_registered_detector_is_a_challenger_with_signature_example_and_no_other_alias(detector: Path) -> None:
    import mlflow

    run_id = log_run("r1", {}, [], {}, [], {})
    made = register_detector("signed", run_id, detector, {"run_id": "r1"}, "the first")
    assert (made.version, made.aliases, made.tags["run_id"], made.description) == (
        "1",
        (CHALLENGER,),
        "r1",
        "the first",
    )
    assert made.run_id == run_id
    info = mlflow.models.get_model_info("models:/signed@challenger")
    outputs = info.signature.to_dict()["outputs"]
    assert all(name in outputs for name in ("key", "score", "threshold", "anomalous"))
    example = mlflow.pyfunc.load_model("models:/signed@challenger").input_example
    assert all(line.startswith("240102 03040") and "blk_" in line for line in example)
    with detector_folder(made) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in detector.iterdir()
        }


def test_the_first_champion_replaces_nobody_and_the_next_keeps_it_as_previous() -> None:
    first, second, _ = _three("crowned")
    make_champion(first)
    assert _aliases("crowned") == {CHAMPION: "1"}
    make_champion(second)
    assert _aliases("crowned") == {CHAMPION: "2", PREVIOUS: "1"}
    make_champion(second)
    assert _aliases("crowned") == {CHAMPION: "2", PREVIOUS: "1"}


def test_rolling_back_twice_is_rolling_back_once() -> None:
    first, second, third = _three("rolled")
    make_champion(first)
    make_champion(second)
    champion, lost = roll_back("rolled")
    assert (champion.version, lost and lost.version) == ("1", "2")
    assert _aliases("rolled") == {CHAMPION: "1"}
    champion, lost = roll_back("rolled")
    assert (champion.version, lost) == ("1", None)
    assert _aliases("rolled") == {CHAMPION: "1"}
    make_champion(third)
    champion, lost = roll_back("rolled")
    assert (champion.version, lost and lost.version) == ("1", "3")


def test_going_back_was_cut_off_and_is_finished_by_the_next_call() -> None:
    first, second, _ = _three("halfway")
    make_champion(first)
    make_champion(second)
    client = tracking_client()
    client.set_model_version_tag("halfway", "1", "restored", "now")
    client.set_registered_model_alias("halfway", CHAMPION, "1")
    champion, lost = roll_back("halfway")
    assert (champion.version, lost) == ("1", None)
    assert _aliases("halfway") == {CHAMPION: "1"}


def test_a_promotion_that_was_cut_off_keeps_the_old_champion_and_can_be_done_again() -> None:
    first, second, _ = _three("cut")
    make_champion(first)
    tracking_client().set_registered_model_alias("cut", PREVIOUS, "1")
    assert _aliases("cut") == {CHAMPION: "1", PREVIOUS: "1"}
    make_champion(second)
    assert _aliases("cut") == {CHAMPION: "2", PREVIOUS: "1"}


def test_there_is_no_way_back_from_nothing_or_from_the_first_champion() -> None:
    first, *_ = _three("alone")
    with pytest.raises(RegistryError, match="atalaia promote alone"):
        roll_back("alone")
    make_champion(first)
    with pytest.raises(RegistryError, match="first champion"):
        roll_back("alone")


def test_the_detector_that_is_meant_is_named_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="atalaia run"):
        only_name(None, Layout(tmp_path))
    for name in ("left", "right"):
        tracking_client().create_registered_model(name, tags={"made_by": "atalaia"})
    tracking_client().create_registered_model("somebody-elses")
    assert "somebody-elses" not in model_names()
    assert only_name("left") == "left"
    with pytest.raises(RegistryError, match="left, "):
        only_name(None)
    with pytest.raises(RegistryError, match="'other'"):
        only_name("other")


@pytest.mark.long
def test_a_detector_registered_on_a_server_comes_back_from_it_and_judges_raw_lines(
    tracking_server: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    home = Layout(tmp_path / "home")
    page = tmp_path / "report.html"
    page.write_text("<p>report</p>")
    run_id = log_run("r1", {"rank": 2}, [{"round": 0, "loss": 1.0}], {"auroc": 0.5}, [page], {"run_id": "r1"})
    folder = write_detector(tmp_path / "detector", tiny_model, home)
    made = register_detector("hdfs-sim", run_id, folder, {"run_id": "r1"})
    found = find_version("hdfs-sim", CHALLENGER)
    assert found is not None
    assert (made.version, found.version, found.run_id, found.tags) == ("1", "1", run_id, {"run_id": "r1"})
    # What was tracked lies with the server and nowhere under the home folder.
    kept = {path.name: path.read_bytes() for path in (tracking_server / "artifacts").rglob("*") if path.is_file()}
    assert kept["report.html"] == page.read_bytes()
    assert kept["adapter.safetensors"] == (folder / "adapter.safetensors").read_bytes()
    assert not [path for path in home.mlflow.rglob("*") if path.is_file()]

    generate(tmp_path / "log", 20, 0)
    lines = (tmp_path / "log" / "HDFS.log").read_text().splitlines()
    judged = load_detector("models:/hdfs-sim@challenger").predict(lines)
    assert len(judged) == 20
    # A threshold of 0 and a surprise in nats, which is above it: an untrained model finds every window surprising.
    assert all(window.anomalous for window in judged)
    assert register_detector("hdfs-sim", run_id, folder, {}).version == "2"


@pytest.mark.long
def test_a_server_writes_no_line_for_each_question_whether_it_is_well(tracking_server: Path) -> None:
    with urllib.request.urlopen(f"{tracking_uri()}/health", timeout=60) as answer:
        assert answer.status == 200
    assert "/health" not in (tracking_server.parent / "server.log").read_text()
