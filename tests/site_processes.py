"""A link and its sites as processes of their own for tests, each site in a network of its own where that is allowed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.processes import belonging

ROOT = Path(__file__).resolve().parent.parent
ATALAIA = str(Path(sys.executable).parent / "atalaia")


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens at, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Place:
    """Where a site's processes run, and under which address they find the link."""

    link_host: str
    prefix: tuple[str, ...] = ()
    """The command that starts another in the site's network."""
    cable: str = ""
    """The end of the site's cable in this network; none where the sites share it."""

    def plug(self, *, pulled: bool) -> None:
        """Pull the site's cable, or put it back."""
        state = "down" if pulled else "up"
        subprocess.run(["ip", "link", "set", self.cable, state], capture_output=True, check=True)


@contextlib.contextmanager
def places(sites: int) -> Iterator[list[Place]]:
    """A network namespace for each site with a cable to this one; else loopback addresses (needs no rights)."""
    names = [f"atalaia-{os.getpid()}-{site}" for site in range(sites)]
    found = [
        Place(f"10.213.{site}.1", ("ip", "netns", "exec", name), _cable(site)[0]) for site, name in enumerate(names)
    ]
    try:
        try:
            for site, name in enumerate(names):
                _connect(name, site)
        except (OSError, subprocess.CalledProcessError):
            found = [Place(f"127.0.0.{site + 2}") for site in range(sites)]
        yield found
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _cable(site: int) -> tuple[str, str]:
    """The names of a cable's ends, in this network and in the site's."""
    return f"at{os.getpid() % 100000}{site}h", f"at{os.getpid() % 100000}{site}s"


def _connect(name: str, site: int) -> None:
    outside, inside = _cable(site)
    for command in (
        f"ip netns add {name}",
        f"ip link add {outside} type veth peer name {inside} netns {name}",
        f"ip addr add 10.213.{site}.1/24 dev {outside}",
        f"ip link set {outside} up",
        f"ip -n {name} addr add 10.213.{site}.2/24 dev {inside}",
        f"ip -n {name} link set {inside} up",
        f"ip -n {name} link set lo up",
    ):
        subprocess.run(command.split(), capture_output=True, check=True)


@dataclass
class Program:
    """A command under way, its output in a file."""

    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def text(self) -> str:
        """What it has said."""
        return self.output.read_text(errors="replace")

    def finish(self, seconds: float = 300.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout=seconds)

    def signal(self, number: int) -> None:
        """To it and all that it started in its session."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """As a power cut does it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Programs:
    """All that a test has started; everything ends with it."""

    folder: Path
    started: list[Program] = field(default_factory=list)

    def start(self, name: str, home: Path, arguments: Sequence[str], prefix: Sequence[str] = ()) -> Program:
        """Start a command in a home of its own."""
        output = self.folder / f"{name}-{len(self.started)}.out"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ATALAIA_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
        }
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*prefix, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(Program(process, output))
        return self.started[-1]

    def link(self, home: Path, certs: Path, ports: Sequence[int], settings: Sequence[str]) -> Program:
        """Start a link."""
        options = ["--certs", str(certs), "--port", str(ports[0]), "--control-port", str(ports[1])]
        command = [ATALAIA, "superlink", *settings, *options, "--app-port", str(ports[2])]
        return self.start("link", home, command)

    def site(
        self,
        home: Path,
        log: Path,
        certs: Path,
        address: str,
        model: Path | None,
        *more: str,
        place: Place | None = None,
    ) -> Program:
        """Start a site."""
        command = [ATALAIA, "site", "--logs", str(log), "--format", "hdfs", "--link", address, "--certs", str(certs)]
        command += ["--threads", "1", "--device", "cpu", *more]
        command += ["--model", str(model)] if model else []
        return self.start(certs.name, home, command, place.prefix if place else ())

    def end(self) -> None:
        """End what still runs."""
        for program in self.started:
            if program.process.poll() is None:
                program.process.terminate()
        for program in self.started:
            try:
                program.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                program.kill()


def left_over(home: Path) -> list[psutil.Process]:
    """What a link's command has left running."""
    return belonging(str(home / "link"))


def wait_until(reached: Callable[[], bool], programs: Programs, seconds: float = 300.0) -> None:
    """Wait for something; fails with what the programs said."""
    deadline = time.monotonic() + seconds
    while not reached():
        said = "\n".join(f"{program.output.name}:\n{program.text[-3000:]}" for program in programs.started)
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
