"""A federation of three sites as processes of their own, on simulated logs and with a tiny model, for long tests."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from site_federations import NAMES, simulated_logs
from site_processes import Place, Program, Programs, free_ports

from flows.settings import run_config
from flows.site_rules import SiteRules, federation_rules
from storage.adapters import CommittedRound, committed_rounds
from storage.certificates import issue
from storage.layout import Layout

PRESET = "hdfs-2pct"


@dataclass
class RealFederation:
    """A link and its sites, each with a home of its own."""

    rules: SiteRules
    model: Path
    folder: Path
    settings: tuple[str, ...]
    ports: list[int]
    places: Sequence[Place]
    programs: Programs
    logs: list[Path]

    def home(self, name: str) -> Path:
        """Where the link, or a site of that name, keeps what is its own."""
        return self.folder / "homes" / name

    def start_link(self, *options: str) -> Program:
        """Start the link."""
        settings = [PRESET, f"model.name={self.model}", *self.settings, "--join-seconds", "30", *options]
        return self.programs.link(self.home("link"), self.folder / "certs" / "link", self.ports, settings)

    def start_site(self, name: str) -> Program:
        """Start a site that accepts the federation's rules."""
        place, log = self.places[NAMES.index(name)], self.logs[NAMES.index(name)]
        certs, address = self.folder / "certs" / "sites" / name, f"{place.link_host}:{self.ports[0]}"
        accepted = ("--accept", self.rules.sha256)
        return self.programs.site(self.home(name), log, certs, address, self.model, *accepted, place=place)

    def committed(self) -> list[CommittedRound]:
        """The link's rounds, the untrained adapter first; none before there is a run."""
        found = list((self.home("link") / "runs").glob("*/rounds"))
        return committed_rounds(found[0].parent) if found else []


@contextlib.contextmanager
def real_federation(
    model: Path, folder: Path, settings: tuple[str, ...], places: Sequence[Place] = (Place("127.0.0.1"),) * len(NAMES)
) -> Iterator[RealFederation]:
    """Logs, keys and rules of a federation that is not started; what is started ends with the block."""
    logs = folder / "logs"
    logs.mkdir()
    issue(folder / "certs", NAMES, [place.link_host for place in places])
    config = run_config(PRESET, [*settings, f"model.name={model}"])
    rules = federation_rules(config, folder / "certs" / "link", None, Layout(folder / "rules"))[0]
    programs = Programs(folder)
    try:
        yield RealFederation(rules, model, folder, settings, free_ports(3), places, programs, simulated_logs(240, logs))
    finally:
        programs.end()
