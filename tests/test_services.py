"""The services of a home: what they are started by, how they are kept running, and that nothing is left of them."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from platforms import atalaia, free_port

from flows import supervised, supervisor, watcher
from flows.operations import _start_supervisor, bring_down, settings_of
from flows.processes import SERVICE_MARK, SERVICES_MARK, belonging, end_belonging, is_free, owner_of
from flows.promote_command import detectors, rollback
from flows.server import quiet_environment
from flows.services import PlatformSettings, Service, services_of, shared_environment
from flows.supervised import Supervised
from flows.supervisor import open_doors
from storage import registry
from storage.databases import databases, prepare_database
from storage.layout import Layout
from storage.services import PlatformState, ServiceError, read_state, running, sole_supervisor, write_state
from storage.tracking import tracking_uri


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def _state(**changes: object) -> PlatformState:
    facts = {"phase": "up", "supervisor": os.getpid(), "started": "2026-01-01T00:00:00+00:00", "host": "127.0.0.1"}
    urls = {"prefect_url": "http://127.0.0.1:1", "mlflow_url": "http://127.0.0.1:2", "database": "SQLite"}
    return PlatformState.model_validate({**facts, **urls, **changes})


def test_a_state_counts_only_while_its_supervisor_lives(layout: Layout) -> None:
    assert running(layout) is None
    write_state(layout, _state())
    assert running(layout) is None
    with sole_supervisor(layout):
        assert running(layout) == _state()
    assert running(layout) is None
    assert read_state(layout) == _state()


def test_a_home_has_one_supervisor(layout: Layout) -> None:
    with sole_supervisor(layout), pytest.raises(ServiceError, match="up already"), sole_supervisor(layout):
        pass


def test_commands_find_the_running_servers_unless_the_environment_names_others(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    write_state(layout, _state())
    with sole_supervisor(layout):
        quiet_environment(layout)
    assert os.environ.pop("PREFECT_API_URL") == "http://127.0.0.1:1/api"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://elsewhere"


@pytest.mark.parametrize("command", [detectors, rollback])
def test_every_command_of_the_registry_asks_the_running_one(
    command: Callable[[], None], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def asked(*given: object) -> list[str]:
        raise Asked(tracking_uri(layout))

    monkeypatch.setattr(os, "environ", {**os.environ, "ATALAIA_HOME": str(layout.home)})
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    monkeypatch.setattr(registry, "model_names", asked)
    write_state(layout, _state())
    with sole_supervisor(layout), pytest.raises(Asked, match=r"http://127\.0\.0\.1:2"):
        command()


def test_without_a_database_both_servers_keep_files_under_the_home_folder(layout: Layout) -> None:
    found = databases(None, layout)
    assert found.prefect == f"sqlite+aiosqlite:///{layout.prefect}/prefect.db"
    assert found.mlflow == f"sqlite:///{layout.mlflow}/mlflow.db"


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "postgresql://u:secret@host", "no address: secret"])
def test_an_address_of_no_postgresql_database_is_one_line_without_its_password(url: str, layout: Layout) -> None:
    with pytest.raises(ServiceError, match="postgresql://USER@HOST/DATABASE") as caught:
        databases(url, layout)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_one_line_without_its_password() -> None:
    with pytest.raises(ServiceError, match="does not answer or refuses") as caught:
        prepare_database(f"postgresql://u:secret@127.0.0.1:{free_port()}/d")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_command_shows_a_password_and_no_worker_is_told_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2")
    url = "postgresql://u:secret@127.0.0.1/d"
    monkeypatch.setenv("ATALAIA_DATABASE", url)
    settings = PlatformSettings(database=url)
    assert "secret" not in json.dumps(shared_environment(settings, layout))
    for service in services_of(settings, layout, 1):
        assert "secret" not in " ".join(service.command)
        assert ("secret" in json.dumps(service.environment)) == (service.name in {"prefect", "mlflow"})


def test_a_gpu_has_a_worker_of_its_own_that_sees_no_other(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    workers = {found.name: found for found in services_of(PlatformSettings(), layout, 2) if "worker" in found.name}
    assert list(workers) == ["worker-cpu", "worker-gpu-0", "worker-gpu-1"]
    for device in "01":
        found = workers[f"worker-gpu-{device}"]
        assert found.environment == {"CUDA_VISIBLE_DEVICES": device}
        assert found.command[found.command.index("--limit") + 1] == "1"
        assert found.command[found.command.index("--pool") + 1] == "gpu"


def test_all_parts_are_told_to_report_nothing(layout: Layout) -> None:
    told = shared_environment(PlatformSettings(), layout)
    assert told["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert told["DO_NOT_TRACK"] == told["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert told["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert told["FLWR_TELEMETRY_ENABLED"] == told["RAY_USAGE_STATS_ENABLED"] == "0"


def test_servers_listen_on_loopback_and_a_warning_says_what_else_opens() -> None:
    assert PlatformSettings().host == "127.0.0.1"
    assert open_doors(PlatformSettings()) == ()
    [warning] = open_doors(PlatformSettings(host="0.0.0.0", prefect_port=4201))
    for said in ("4201", "5000", "no password", "start programs", "TLS"):
        assert said in warning


def test_a_wrong_option_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"--cpu-runs 0: input should be greater than 0\.$"):
        settings_of(cpu_runs=0)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[bytes]]]:
    """Starts marked processes that ignore SIGTERM, each with a child in a session of its own that does too."""
    started: list[subprocess.Popen[bytes]] = []
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)"
    code = (
        f"import subprocess, sys; {stubborn};"
        f"subprocess.Popen([sys.executable, '-c', {stubborn + '; time.sleep(600)'!r}], start_new_session=True);"
        "time.sleep(600)"
    )

    def start(folder: str, service: str) -> subprocess.Popen[bytes]:
        marks = {**os.environ, SERVICES_MARK: folder, SERVICE_MARK: service}
        process = subprocess.Popen([sys.executable, "-c", code], env=marks, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"ready\n"] * 2
        return process

    yield start
    for process in started:
        with suppress(psutil.NoSuchProcess):
            for member in psutil.Process(process.pid).children(recursive=True):
                member.kill()
        process.kill()
        process.wait()


def test_what_belongs_to_a_service_ends_with_all_it_started_and_nothing_else_does(
    family: Callable[[str, str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    mine, other, elsewhere = family(a, "one"), family(a, "two"), family(b, "one")
    assert len(belonging(a, "one")) == 2
    assert end_belonging(a, "one", patience=0.2) == 2
    assert mine.poll() is not None
    assert belonging(a, "one") == []
    assert (other.poll(), elsewhere.poll()) == (None, None)
    assert len(belonging(a)) == len(belonging(b)) == 2


def test_a_port_that_is_taken_tells_its_owner() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        assert owner_of(port).startswith(f"process {os.getpid()} (")
    assert is_free("127.0.0.1", port)


def _until(service: Supervised, condition: str) -> None:
    deadline = time.monotonic() + 30
    while service.condition != condition and time.monotonic() < deadline:
        service.step(set())
        time.sleep(0.01)
    assert service.condition == condition, service.state()


def test_a_service_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(supervised, "_ASK_SECONDS", 0.0)
    found = Supervised(Service("sleeper", ("sleep", "600")), tmp_path, dict(os.environ))
    _until(found, "healthy")
    assert found.process is not None
    first = found.process.pid
    os.kill(first, signal.SIGKILL)
    _until(found, "restarting")
    assert found.state().reason == "it was ended by SIGKILL"
    _until(found, "healthy")
    assert found.state().pid not in {None, first}
    assert found.state().restarts == 1
    found.stop()
    assert (found.condition, belonging(str(tmp_path))) == ("stopped", [])


def test_a_server_is_not_ended_while_it_makes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_ASK_SECONDS", 0.01)
    made = tmp_path / "tables"
    command = ("sh", "-c", f"sleep 0.5; touch {made}; exec sleep 600")
    server = Service("server", command, answers=lambda started: made.exists(), address="http://127.0.0.1:1")
    found = Supervised(server, tmp_path, dict(os.environ))
    _until(found, "starting")
    found.stop()
    assert made.exists()
    assert (found.condition, belonging(str(tmp_path))) == ("stopped", [])
    monkeypatch.setattr(supervised, "_START_SECONDS", 0.1)
    mute = Supervised(Service("mute", ("sleep", "600"), answers=lambda started: False, address="x"), tmp_path, {})
    _until(mute, "starting")
    mute.stop()
    assert (mute.condition, belonging(str(tmp_path))) == ("stopped", [])


def test_a_service_that_never_lasts_is_given_up_with_the_last_thing_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_LONGEST_PAUSE", 0.01)
    found = Supervised(Service("broken", ("sh", "-c", "echo no such table; exit 3")), tmp_path, dict(os.environ))
    _until(found, "given up")
    assert found.reason.startswith('it ended with status 3, 5 times in a row: "no such table"; see ')
    assert "\n" not in found.reason


def test_a_long_log_is_put_aside_at_the_next_start_and_a_short_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_LONG_LOG", 10)
    log, aside = tmp_path / "step.log", tmp_path / "step.log.1"
    for before, after, kept in (("short\n", "short\nsaid\n", None), ("0123456789\n", "said\n", "0123456789\n")):
        log.write_text(before)
        _until(Supervised(Service("step", ("echo", "said"), once=True), tmp_path, dict(os.environ)), "done")
        assert log.read_text() == after
        assert (aside.read_text() if aside.exists() else None) == kept


def test_the_last_line_of_a_log_takes_no_memory_for_the_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.seek(1 << 25)
        file.write(b"\nfirst \xff\nlast\n\n")
    tracemalloc.start()
    try:
        assert supervised.last_line(log) == "last"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert supervised.last_line(tmp_path / "none") == ""


def test_a_service_waits_for_what_it_needs_and_a_step_runs_once(tmp_path: Path) -> None:
    step = Supervised(Service("step", ("true",), needs=("base",), once=True), tmp_path, dict(os.environ))
    step.step(set())
    assert step.condition == "waiting"
    step.step({"base"})
    assert step.condition == "starting"
    _until(step, "done")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is said goes to a device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    full = Path("/dev/full").open("w")  # noqa: SIM115 (closing it fails too)
    monkeypatch.setattr(sys, "stdout", full)
    yield
    with suppress(OSError):
        full.close()


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """What a supervisor in this process does to its signals is undone."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("full_disk", "_own_signals")
def test_a_full_disk_ends_neither_supervisor_nor_watcher_and_the_state_is_written_when_there_is_room(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def write_later(layout: Layout, state: PlatformState) -> None:
        tries.append(state.phase)
        if state.phase == "up" and tries.count("up") > 2:
            write_state(layout, state)
            os.kill(os.getpid(), signal.SIGTERM)
        elif state.phase != "down":
            raise OSError(errno.ENOSPC, "No space left on device")

    sleeper = Service("sleeper", ("sleep", "600"))
    monkeypatch.setattr(supervisor, "services_of", lambda settings, layout, gpus: (sleeper,))
    monkeypatch.setattr(supervisor, "write_state", write_later)
    monkeypatch.setattr(supervisor, "_LOOK_SECONDS", 0.01)
    settings = PlatformSettings(gpu=False, prefect_port=free_port(), mlflow_port=free_port())
    assert supervisor.supervise(settings, layout) == ""
    written = read_state(layout)
    assert written is not None
    assert (written.phase, [found.condition for found in written.services]) == ("up", ["healthy"])
    watcher._say("a line")


@pytest.mark.usefixtures("_own_signals")
def test_a_supervisor_that_starts_says_so_before_anything_else_and_forgets_the_state_of_a_former_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[PlatformState | None] = []

    def look(settings: PlatformSettings) -> tuple[int, tuple[str, ...]]:
        found.append(running(layout))
        raise ServiceError("enough")

    monkeypatch.setattr(supervisor, "_gpu_workers", look)
    write_state(layout, _state(supervisor=1))
    assert supervisor.supervise(PlatformSettings(), layout) == "enough"
    [state] = found
    assert state is not None
    assert (state.phase, state.supervisor) == ("starting", os.getpid())


def test_down_ends_a_supervisor_that_has_not_said_yet_that_it_starts(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATALAIA_HOME", str(layout.home))
    settings = PlatformSettings(gpu=False, prefect_port=free_port(), mlflow_port=free_port())
    process = _start_supervisor(settings, layout)
    try:
        bring_down()
        assert process.poll() is not None
        assert belonging(str(layout.home / "services")) == []
    finally:
        process.terminate()
        process.wait()


def test_a_service_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Supervised(Service("sleeper", ("sleep", "600")), tmp_path / "missing", dict(os.environ))
    found.step(set())
    assert found.condition == "restarting"
    assert found.reason.startswith("it could not be started: ")


def test_up_with_a_taken_port_names_it_and_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = atalaia("up", "--no-gpu", "--prefect-port", str(port), "--mlflow-port", str(free_port()), home=tmp_path)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("atalaia: ")]
    assert f"port {port}: it is taken by process {os.getpid()} (" in line
    assert "--prefect-port" in line
    assert belonging(str(tmp_path / "services")) == []
    assert running(Layout(tmp_path)) is None


def test_status_and_down_where_nothing_is_up(tmp_path: Path) -> None:
    done = atalaia("status", "--json", home=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["phase"], done.stderr) == (1, "down", "")
    assert atalaia("down", home=tmp_path).stdout == "Down.\n"
