"""The flow `federate`: a link that Prefect starts and watches, its sites as processes of their own."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.artifacts import Artifact
from prefect_session import home, prefect_api
from site_federations import NAMES, simulated_logs, undisturbed_rounds
from site_processes import Programs, free_ports, left_over, wait_until

from flows.config import RunConfig
from flows.federate import federate
from flows.link import LinkSettings
from flows.settings import run_config
from flows.site_rules import SiteRules, federation_rules
from storage.adapters import committed_rounds
from storage.certificates import issue
from storage.layout import Layout

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_api")]


@dataclass
class Given:
    """What the deployment is given, and the sites' side of it."""

    config: RunConfig
    link: LinkSettings
    rules: SiteRules
    programs: Programs
    folder: Path

    def start_sites(self, model: Path) -> None:
        logs = self.folder / "logs"
        logs.mkdir()
        address = f"127.0.0.1:{self.link.port}"
        for name, log in zip(NAMES, simulated_logs(240, logs), strict=True):
            certs = self.folder / "certs" / "sites" / name
            self.programs.site(self.folder / "homes" / name, log, certs, address, model, "--accept", self.rules.sha256)


@pytest.fixture
def given(home: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Given]:
    certs, ports, programs = tmp_path / "certs" / "link", free_ports(3), Programs(tmp_path)
    issue(tmp_path / "certs", NAMES)
    settings = ["rounds=2", "steps=1", "batch_size=4", "fraction=1.0", "rank=2", "scored_rounds=last"]
    config = run_config("hdfs-2pct", [*settings, f"model.name={tiny_model}"])
    link = LinkSettings(certs=certs, port=ports[0], control_port=ports[1], app_port=ports[2], join_seconds=60)
    yield Given(config, link, federation_rules(config, certs, None, Layout(home))[0], programs, tmp_path)
    programs.end()


def test_a_federation_that_prefect_starts_ends_with_every_round_and_a_page_of_its_sites(
    given: Given, home: Path, tiny_model: Path
) -> None:
    given.start_sites(tiny_model)
    state = federate(given.config, given.link, return_state=True)
    assert state.is_completed(), state.message
    assert "2 rounds with 3 sites" in state.message
    wait_until(lambda: all(each.process.poll() is not None for each in given.programs.started), given.programs, 60)
    assert [each.process.returncode for each in given.programs.started] == [0] * 3
    [run] = (home / "runs").iterdir()
    committed = {each.number: each.adapter.read_bytes() for each in committed_rounds(run)}
    assert committed == undisturbed_rounds(given.rules, tiny_model, given.folder / "homes", given.folder / "alone")
    assert len(committed) == 3
    page = Artifact.get("sites")
    assert page is not None
    assert page.data == (run / "sites.md").read_text()
    assert all(name in page.data for name in NAMES)
    assert left_over(home) == []


def test_a_federation_that_cannot_listen_fails_with_the_reason(given: Given, home: Path) -> None:
    with socket.create_server(("127.0.0.1", given.link.port)):
        state = federate(given.config, given.link, return_state=True)
    assert state.is_failed()
    assert f"cannot listen at 127.0.0.1 port {given.link.port}" in state.message
    assert left_over(home) == []
