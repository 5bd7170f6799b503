"""The link of a federation of sites: Flower's SuperLink kept running, and the federation's run on it, to its end."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fl.errors import FederationError, LinkLost, LinkRefused, LostClients
from fl.federation import save_job
from fl.link import Link
from flows.config import derived_of
from flows.processes import end_belonging, is_free, owner_of
from flows.services import Service
from flows.site_rules import SiteRules
from flows.supervised import Supervised
from flows.terminal_sites import event_words, sites_report
from storage.adapters import committed_rounds
from storage.certificates import CA, SERVER, SERVER_KEY, RegisteredSite, needed_files, registered_sites
from storage.disks import is_full
from storage.errors import DiskFull
from storage.events import read_events
from storage.layout import Layout
from storage.model_files import giving_model
from storage.services import ServiceError
from storage.site_numbers import FederationOfSites, read_numbers, save_federation

Tell = Callable[[str], None]

_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 5.0
_END_SECONDS = 10.0


class LinkSettings(BaseModel):
    """Where the link listens, and with which certificates."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    certs: Path
    """The link's folder of `atalaia certs`."""
    host: str = "127.0.0.1"
    """The address that sites connect to."""
    port: int = Field(default=9092, gt=0, lt=65536)
    """The port that sites connect to."""
    control_port: int = Field(default=9093, gt=0, lt=65536)
    """Loopback only: whoever reaches it can register sites and start runs."""
    app_port: int = Field(default=9091, gt=0, lt=65536)
    """Loopback only: where the server app talks to the link."""
    model_port: int | None = Field(default=None, gt=0, lt=65536)
    """Where sites get the base model; none: each has it itself."""
    join_seconds: float = Field(default=600.0, ge=0)
    """How long a round waits for missing sites before the run is tried again."""
    patience: float = Field(default=3600.0, ge=0)
    """How long the link goes on without a new round before it gives up; longer than a round takes."""

    @property
    def address(self) -> str:
        """Where sites find it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class LinkRun:
    """One federation's run, from the last committed round to the end."""

    def __init__(self, rules: SiteRules, settings: LinkSettings, layout: Layout, tell: Tell, model: str | Path) -> None:
        """`model` is the base model's directory. Raises DataError where the certificates' folder lacks something."""
        needed_files(settings.certs, (CA, SERVER, SERVER_KEY), "link")
        self._rules, self._settings, self._tell, self._model = rules, settings, tell, Path(model)
        self.sites: list[RegisteredSite] = registered_sites(settings.certs)
        self.run_id = rules.run_id
        self.folder = layout.run(self.run_id)
        self._services = layout.home / "link"
        self._supervised = Supervised(self._service(), self._services, _environment(self._services))
        self._stopping = False
        self._offset = 0
        self._flower_run: int | None = None
        self._nodes: dict[int, int] = {}
        self._process: int | None = None
        self._begun = time.monotonic()
        self._news = "none"

    @property
    def names(self) -> list[str]:
        """The sites by partition."""
        return [site.name for site in self.sites]

    def run(self, *, signals: bool = True) -> Path:
        """Keep the link running until every round is committed and judged; the run's folder.

        `signals`: whether SIGTERM and Ctrl-C end it in order; False where whoever calls it turns them into exceptions.
        Raises ServiceError where the link cannot run, FederationError where the run cannot go on.
        """
        self._services.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, words in derived_of(self._rules.federation, self._rules.privacy).items():
            self._tell(f"{name}: {words}")
        with _sole_link(self._services), self._signals() if signals else nullcontext():
            end_belonging(str(self._services))
            self._check_ports()
            save_job(self._rules.job(self.run_id, self.folder))
            (self.folder / "rules.json").write_text(self._rules.text())
            _, self._offset = read_events(self.folder)
            try:
                with self._giving():
                    self._until_done()
            finally:
                self._end()
        (self.folder / "sites.md").write_text(sites_report(read_numbers(self.folder), self.names))
        return self.folder

    def _end(self) -> None:
        """End the link first: what it started ends by itself when it is gone, and takes long to be told otherwise."""
        process = self._supervised.process
        if process is not None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_SECONDS)
        self._supervised.stop()
        end_belonging(str(self._services))

    def _giving(self) -> AbstractContextManager[None]:
        """Give the base model to the sites where the rules say so."""
        port = self._rules.model.port
        if port is None:
            return nullcontext()
        return giving_model(self._model, self._settings.certs, self._settings.host, port)

    def _until_done(self) -> None:
        link = Link(f"127.0.0.1:{self._settings.control_port}", self._settings.certs / CA)
        try:
            while not self._stopping:
                self._supervised.step(set())
                if self._supervised.condition == "given up":
                    raise ServiceError(f"The link could not be started: {self._supervised.reason}.")
                if self._supervised.condition in {"healthy", "silent"} and self._step(link):
                    return
                self._hear()
                time.sleep(_LOOK_SECONDS)
            raise FederationError("The link was stopped; the same command goes on after the last committed round.")
        finally:
            link.close()

    def _step(self, link: Link) -> bool:
        """Start the run where there is none, else look how it is; whether it is done."""
        process = self._supervised.process
        pid = process.pid if process is not None else None
        try:
            if pid != self._process or self._flower_run is None:
                self._start(link)
                self._process = pid
                return False
            state = link.state(self._flower_run)
        except LinkLost:
            return False  # the supervisor sees to it
        except LinkRefused as error:
            raise ServiceError(f"{error} Its log is {self._supervised.log}.") from error
        self._hear()
        if state.status != "finished":
            self._check_patience()
            return False
        if state.ended == "completed":
            return True
        self._failed(state.details)
        return False

    def _start(self, link: Link) -> None:
        """Register the sites, which a new link does not know, and start the run."""
        done = len(committed_rounds(self.folder)) - 1
        if self._is_new():
            self._nodes = {site.number: link.register(site.public_pem) for site in self.sites}
        nodes = self._nodes
        save_federation(
            self.folder,
            FederationOfSites(
                rules=self._rules.text(),
                nodes=nodes,
                names=tuple(self.names),
                judged_rounds=self._rules.judged_rounds,
                join_seconds=self._settings.join_seconds,
                model_folder=str(self._model),
            ),
        )
        self._flower_run = link.start({"run-folder": str(self.folder)})
        self._tell(f"waiting for {len(nodes)} sites at {self._settings.address}; rounds committed: {max(0, done)}")

    def _is_new(self) -> bool:
        process = self._supervised.process
        return process is None or process.pid != self._process

    def _failed(self, details: str) -> None:
        """Try again where another try can help; raises FederationError with the server's reason otherwise."""
        kind, message = _reason(self.folder, details)
        self._flower_run = None
        if kind not in {LostClients.__name__, DiskFull.__name__, ""}:
            raise FederationError(message)
        if time.monotonic() - self._begun > self._settings.patience:
            raise LostClients(f"{message} Given up after {self._settings.patience:.0f} seconds without a new round.")
        self._tell(f"{message} Trying again.")
        time.sleep(_RETRY_SECONDS)

    def _check_patience(self) -> None:
        """Raise LostClients where a round goes on for too long: a site that is there may still never answer."""
        if time.monotonic() - self._begun > self._settings.patience:
            raise LostClients(
                f"No new round for {self._settings.patience:.0f} seconds; the last news: {self._news}. The same "
                "command goes on after the last committed round; a longer --patience waits longer, and "
                "round_timeout=SECONDS with min_replies=SITES goes on without sites that do not answer."
            )

    def _hear(self) -> None:
        events, self._offset = read_events(self.folder, self._offset)
        for event in events:
            if event["event"] == "committed" or (event["event"] == "judged" and event["sites"]):
                self._begun = time.monotonic()
            if (words := event_words(event, self.names)) is not None:
                self._news = words
                self._tell(words)

    def _check_ports(self) -> None:
        settings = self._settings
        for host, option, port in (
            (settings.host, "--port", settings.port),
            ("127.0.0.1", "--control-port", settings.control_port),
            ("127.0.0.1", "--app-port", settings.app_port),
        ):
            if not is_free(host, port):
                raise ServiceError(
                    f"The link cannot listen at {host} port {port}: it is taken by {owner_of(port)}, or is no address "
                    f"of this machine. Give another with {option} or --host."
                )

    def _service(self) -> Service:
        return Service("superlink", tuple(self.command()), answers=self._answers, address=self._settings.address)

    def command(self) -> list[str]:
        """Flower's SuperLink, guarded: what each site may ask of it is limited, and what was denied told by events."""
        guard = [sys.executable, "-m", "fl.link_guard", "--sites", str(self._settings.certs)]
        told = ["--run-folder", str(self.folder), "--reply-bytes", str(_reply_bytes(self._model, self._rules))]
        return [*guard, *told, *self.superlink_options()]

    def superlink_options(self) -> list[str]:
        """TLS and the sites' keys for flower-superlink; what only this machine needs listens on loopback alone."""
        settings = self._settings
        options = ["--enable-supernode-auth"]
        for option, name in {"--ssl-ca-certfile": CA, "--ssl-certfile": SERVER, "--ssl-keyfile": SERVER_KEY}.items():
            options += [option, str(settings.certs / name)]
        options += ["--fleet-api-address", settings.address, "--disable-runtime-dependency-installation"]
        options += ["--control-api-address", f"127.0.0.1:{settings.control_port}"]
        options += ["--serverappio-api-address", f"127.0.0.1:{settings.app_port}"]
        return options

    def _answers(self, started: float) -> bool:
        link = Link(f"127.0.0.1:{self._settings.control_port}", self._settings.certs / CA)
        try:
            return link.answers()
        finally:
            link.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def _reason(folder: Path, details: str) -> tuple[str, str]:
    """The kind of a failed run's error and its words; no kind where the server died without a word."""
    try:
        told: dict[str, Any] = json.loads((folder / "error.json").read_text())
        return str(told["error"]), str(told["message"])
    except (OSError, ValueError, KeyError):
        if is_full(folder):
            return DiskFull.__name__, f"The disk of {folder} is full; rounds go on once there is room."
        return "", f"The server app ended without a word ({details[:200] or 'no details'})."


def _reply_bytes(model: Path, rules: SiteRules) -> int:
    """The most that a reply may have: twice the whole adapter in float32, which no codec exceeds, and some room."""
    from fl.costs import adapter_shapes, model_config

    values = sum(math.prod(shape) for shape in adapter_shapes(model_config(model), rules.tuning).values())
    return 2 * 4 * values + 8 * 2**20


def _environment(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATALAIA_RUN")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        # At its usual level it writes a line for each question of each site.
        "FLWR_LOG_LEVEL": "WARNING",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def _sole_link(folder: Path) -> Iterator[None]:
    with (folder / "link.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(f"A link of this home runs already ({folder}); stop it first.") from error
        yield
