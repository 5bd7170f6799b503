"""fl/client_app.py: what a client needs, what it does, and that it sends nothing but weights and numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated_jobs import LocalGrid, small_job, write_shares
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from fl import client_app
from fl.client_app import Site, read_share, site_of
from fl.errors import FederationError
from fl.server_app import train_federation
from storage.events import read_events


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shares(tmp_path_factory.mktemp("partition") / "shares")


def _context(**node_config: str | int) -> Context:
    return Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})


def test_a_share_is_read_window_by_window(shares: Path) -> None:
    site = Site(1, shares, Path("model"), "cpu", 1, None)
    windows = read_share(site)
    generator = np.random.default_rng(1)
    expected = [generator.integers(3, 40, generator.integers(5, 25)) for _ in range(21)]
    assert len(windows) == 21
    assert all(np.array_equal(window, other) for window, other in zip(windows, expected, strict=True))


def test_a_missing_share_is_told_in_one_line(shares: Path) -> None:
    with pytest.raises(FederationError, match="Client 9 has no share"):
        read_share(Site(9, shares, Path("model"), "cpu", 1, None))


def test_a_sites_settings_come_from_its_node_first_and_else_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATALAIA_SHARES_FOLDER", "/from/environment")
    monkeypatch.setenv("ATALAIA_MODEL_FOLDER", "/model")
    site = site_of(_context(**{"partition-id": 3}))
    assert (site.partition, site.shares_folder) == (3, Path("/from/environment"))
    site = site_of(_context(**{"partition-id": 3, "shares-folder": "/from/node", "threads": 1}))
    assert (site.shares_folder, site.threads) == (Path("/from/node"), 1)
    monkeypatch.delenv("ATALAIA_MODEL_FOLDER")
    with pytest.raises(FederationError, match="no model-folder"):
        site_of(_context(**{"partition-id": 3}))


def test_messages_hold_weights_and_numbers_and_no_path_text_or_token(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares)
    grid = LocalGrid(job, client_app.app)
    train_federation(grid, job)  # type: ignore[arg-type]
    asked = [message for message in grid.messages if "metrics" not in message.content]
    assert {record for message in grid.messages for record in message.content} <= {"arrays", "metrics", "config"}
    for message in grid.messages:
        for record in message.content.values():
            if isinstance(record, ArrayRecord):
                assert all("lora_" in name and array.dtype == "float32" for name, array in record.items())
            if isinstance(record, MetricRecord):
                assert all(isinstance(value, int | float) for value in record.values())
    for message in asked:
        for value in message.content.get("config", {}).values():
            assert "/" not in str(value)
            assert str(tmp_path) not in str(value)


def test_the_first_adapter_is_the_same_whoever_makes_it(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares)
    grid = LocalGrid(job, client_app.app)
    from fl.server_app import round_config

    content = RecordDict({"config": round_config(job, 0, 0.0)})
    messages = [Message(content, dst_node_id=node, message_type="query.adapter") for node in grid.get_node_ids()]
    first, *others = [reply.content["arrays"] for reply in grid.send_and_receive(messages)]
    assert len(others) == 3
    for other in others:
        assert all(np.array_equal(first[name].numpy(), other[name].numpy()) for name in first)


@pytest.fixture
def told(
    tmp_path: Path, tiny_model: Path, shares: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, str], list[dict[str, Any]]]:
    """Train so many rounds on the server's machine; gives the events of one name that were told meanwhile."""

    def train(rounds: int, name: str) -> list[dict[str, Any]]:
        job = small_job(tmp_path / "run", tiny_model, shares, rounds=rounds)
        monkeypatch.setenv("ATALAIA_RUN_FOLDER", str(job.run_folder))
        train_federation(LocalGrid(job, client_app.app), job)  # type: ignore[arg-type]
        return [event for event in read_events(job.run_folder)[0] if event["event"] == name]

    return train


def test_a_client_on_the_servers_machine_tells_each_step(told: Callable[[int, str], list[dict[str, Any]]]) -> None:
    assert [event["done"] for event in told(1, "client")] == [1, 2, 3] * 2


def test_the_model_is_loaded_once_for_all_clients_and_rounds(told: Callable[[int, str], list[dict[str, Any]]]) -> None:
    assert len(told(2, "loaded")) == 1
