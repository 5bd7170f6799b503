"""A hundred rounds of three real sites with a fault every few seconds: no round is lost, and memory stays flat."""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from site_federations import NAMES, simulated_logs, undisturbed_rounds
from site_processes import Place, Program, Programs, free_ports, left_over, places, wait_until

from flows.settings import run_config
from flows.site_rules import SiteRules, federation_rules
from storage.adapters import committed_rounds
from storage.certificates import issue
from storage.layout import Layout

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]

ROUNDS = 100
PRESET = "hdfs-2pct"
SETTINGS = (f"rounds={ROUNDS}", "steps=1", "batch_size=4", "fraction=0.67", "rank=2", "seed=3", "scored_rounds=last")
_LINK_FAULTS_UNTIL = 50
"""Rounds after which the link is left alone, so that its memory can be compared."""
_CUT_SECONDS = (5.0, 70.0)
"""How long a cable is pulled, or a site stands still."""


@dataclass
class Federation:
    """A link and its sites, what became of them, and what they held in memory."""

    rules: SiteRules
    model: Path
    folder: Path
    ports: list[int]
    places: list[Place]
    programs: Programs
    logs: list[Path]
    link: Program = field(init=False)
    sites: list[Program] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seen: dict[int, bytes] = field(default_factory=dict)
    """Adapters of rounds as they were when they were first there."""
    memory: dict[str, dict[int, int]] = field(default_factory=lambda: {"site": {}, "link": {}})
    """Bytes after a round, of the site that is never killed, and of all that belongs to the link."""

    @property
    def run(self) -> Path | None:
        """The run's folder, once there is one."""
        return next((self.folder / "homes" / "link" / "runs").glob("*"), None)

    def start_link(self) -> None:
        settings = [PRESET, f"model.name={self.model}", *SETTINGS, "--host", "0.0.0.0", "--join-seconds", "30"]
        self.link = self.programs.link(
            self.folder / "homes" / "link", self.folder / "certs" / "link", self.ports, settings
        )

    def start_site(self, number: int) -> Program:
        name, place = NAMES[number], self.places[number]
        certs, address = self.folder / "certs" / "sites" / name, f"{place.link_host}:{self.ports[0]}"
        home, accepted = self.folder / "homes" / name, ("--accept", self.rules.sha256)
        return self.programs.site(home, self.logs[number], certs, address, self.model, *accepted, place=place)

    def look(self) -> int:
        """The last round that is committed; what is there is remembered, and must not have changed."""
        run = self.run
        found = committed_rounds(run) if run and (run / "rounds").is_dir() else []
        for each in found:
            data = each.adapter.read_bytes()
            assert self.seen.setdefault(each.number, data) == data, f"round {each.number} has changed"
        assert [each.number for each in found] == list(range(len(found)))
        assert len(found) >= len(self.seen), "a committed round is lost"
        last = len(found) - 1
        if last > 0:
            steady = psutil.Process(self.sites[-1].process.pid)
            self.memory["site"][last] = _memory([steady, *steady.children(recursive=True)])
            self.memory["link"][last] = _memory(left_over(self.folder / "homes" / "link"))
        return last

    def fault(self, chance: random.Random, last: int) -> None:
        """Something goes wrong, and may go on being wrong for a while."""
        number = chance.randrange(2)
        kinds = ["power", "halt", *(["cable"] * bool(self.places[0].cable))]
        kinds += ["superlink", "link"] if last < _LINK_FAULTS_UNTIL else []
        kind = chance.choice(kinds)
        self.faults.append(f"round {last}: {kind} {NAMES[number] if kind in {'power', 'halt', 'cable'} else ''}")
        pause = chance.uniform(*_CUT_SECONDS) if chance.random() < 0.3 else _CUT_SECONDS[0]
        if kind == "power":
            self.sites[number].kill()
            time.sleep(chance.uniform(0, 5))
            self.sites[number] = self.start_site(number)
        elif kind == "halt":
            self.sites[number].signal(signal.SIGSTOP)
            time.sleep(pause)
            self.sites[number].signal(signal.SIGCONT)
        elif kind == "cable":
            self.places[number].plug(pulled=True)
            time.sleep(pause)
            self.places[number].plug(pulled=False)
        elif kind == "superlink":
            for process in left_over(self.folder / "homes" / "link"):
                if "flower-superlink" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
        else:
            self.link.kill()
            self.start_link()


def _memory(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@pytest.fixture
def federation(tiny_model: Path, tmp_path: Path) -> Iterator[Federation]:
    logs = tmp_path / "logs"
    logs.mkdir()
    with places(len(NAMES)) as found:
        issue(tmp_path / "certs", NAMES, [place.link_host for place in found])
        config = run_config(PRESET, [*SETTINGS, f"model.name={tiny_model}"])
        rules = federation_rules(config, tmp_path / "certs" / "link", None, Layout(tmp_path / "rules"))[0]
        programs = Programs(tmp_path)
        made = Federation(rules, tiny_model, tmp_path, free_ports(3), found, programs, simulated_logs(240, logs))
        try:
            made.start_link()
            made.sites = [made.start_site(number) for number in range(len(NAMES))]
            yield made
        finally:
            programs.end()


def test_a_hundred_rounds_with_random_faults_lose_none_and_end_as_if_nothing_had_happened(
    federation: Federation, tmp_path: Path
) -> None:
    chance, due = random.Random(0), time.monotonic() + 60
    wait_until(lambda: federation.look() >= 1, federation.programs, 600)
    before, moved = 0, time.monotonic()
    while (last := federation.look()) < ROUNDS:
        if last > before:
            before, moved = last, time.monotonic()
        assert time.monotonic() < moved + 900, federation.link.text[-3000:]
        if time.monotonic() > due and last < ROUNDS - 3:
            federation.fault(chance, last)
            due = time.monotonic() + chance.uniform(5, 25)
        time.sleep(0.2)
    running = [federation.link, *federation.sites]
    wait_until(lambda: all(each.process.poll() is not None for each in running), federation.programs, 600)
    assert [each.process.returncode for each in running] == [0] * 4, federation.link.text[-3000:]
    print("\n".join(federation.faults))
    assert len(federation.faults) >= 8
    assert sorted(federation.seen) == list(range(ROUNDS + 1))
    for who, held in federation.memory.items():
        early = [held[number] for number in held if 55 <= number <= 65]
        late = [held[number] for number in held if number >= 90]
        print(who, [round(max(some) / 1e6) for some in (early, late)], "MB")
        assert max(late) < 1.1 * max(early), f"the memory of the {who} grows"
    homes = federation.folder / "homes"
    assert federation.seen == undisturbed_rounds(federation.rules, federation.model, homes, tmp_path / "undisturbed")
