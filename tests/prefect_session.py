"""Fixtures for tests that run flows: one Prefect server for the whole test run, and a home folder of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.progress import StageEvent, listening


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with an empty database; results of tasks go to a temporary folder."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, PREFECT_LOGGING_LEVEL, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quiet = {
        PREFECT_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("prefect-results"),
        PREFECT_LOGGING_LEVEL: "CRITICAL",
    }
    with prefect_test_harness(server_startup_timeout=120), temporary_settings(quiet):
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder."""
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture
def endings() -> Iterator[list[tuple[str, str]]]:
    """How each stage that runs in the test ends: (stage, cached | ran | failed), in order."""
    found: list[tuple[str, str]] = []

    def note(event: StageEvent) -> None:
        if event.state in {"cached", "ran", "failed"}:
            found.append((event.stage, event.state))

    with listening(note):
        yield found
