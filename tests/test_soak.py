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
from real_federations import RealFederation, real_federation
from site_federations import NAMES, undisturbed_rounds
from site_processes import Program, left_over, places, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]

ROUNDS = 100
SETTINGS = (f"rounds={ROUNDS}", "steps=1", "batch_size=4", "fraction=0.67", "rank=2", "seed=3", "scored_rounds=last")
_EVERYWHERE = ("--host", "0.0.0.0")
"""The link listens in all networks, each site has one of its own."""
_LINK_FAULTS_UNTIL = 50
"""Rounds after which the link is left alone, so that its memory can be compared."""
_CUT_SECONDS = (5.0, 70.0)
"""How long a cable is pulled, or a site stands still."""


@dataclass
class Soaked:
    """A federation under way, what became of it, and what its processes held in memory."""

    real: RealFederation
    link: Program
    sites: list[Program]
    faults: list[str] = field(default_factory=list)
    seen: dict[int, bytes] = field(default_factory=dict)
    """Adapters of rounds as they were when they were first there."""
    memory: dict[str, dict[int, int]] = field(default_factory=lambda: {"site": {}, "link": {}})
    """Bytes after a round, of the site that is never killed, and of all that belongs to the link."""

    def look(self) -> int:
        """The last round that is committed; what is there is remembered, and must not have changed."""
        found = self.real.committed()
        for each in found:
            data = each.adapter.read_bytes()
            assert self.seen.setdefault(each.number, data) == data, f"round {each.number} has changed"
        assert [each.number for each in found] == list(range(len(found)))
        assert len(found) >= len(self.seen), "a committed round is lost"
        last = len(found) - 1
        if last > 0:
            steady = psutil.Process(self.sites[-1].process.pid)
            self.memory["site"][last] = _memory([steady, *steady.children(recursive=True)])
            self.memory["link"][last] = _memory(left_over(self.real.home("link")))
        return last

    def fault(self, chance: random.Random, last: int) -> None:
        """Something goes wrong, and may go on being wrong for a while."""
        number = chance.randrange(2)
        place = self.real.places[number]
        kinds = ["power", "halt", *(["cable"] * bool(place.cable))]
        kinds += ["superlink", "link"] if last < _LINK_FAULTS_UNTIL else []
        kind = chance.choice(kinds)
        self.faults.append(f"round {last}: {kind} {NAMES[number] if kind in {'power', 'halt', 'cable'} else ''}")
        pause = chance.uniform(*_CUT_SECONDS) if chance.random() < 0.3 else _CUT_SECONDS[0]
        if kind == "power":
            self.sites[number].kill()
            time.sleep(chance.uniform(0, 5))
            self.sites[number] = self.real.start_site(NAMES[number])
        elif kind == "halt":
            self.sites[number].signal(signal.SIGSTOP)
            time.sleep(pause)
            self.sites[number].signal(signal.SIGCONT)
        elif kind == "cable":
            place.plug(pulled=True)
            time.sleep(pause)
            place.plug(pulled=False)
        elif kind == "superlink":
            for process in left_over(self.real.home("link")):
                if "fl.link_guard" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
        else:
            self.link.kill()
            self.link = self.real.start_link(*_EVERYWHERE)


def _memory(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@pytest.fixture
def federation(tiny_model: Path, tmp_path: Path) -> Iterator[Soaked]:
    with places(len(NAMES)) as found, real_federation(tiny_model, tmp_path, SETTINGS, found) as real:
        yield Soaked(real, real.start_link(*_EVERYWHERE), [real.start_site(name) for name in NAMES])


def test_a_hundred_rounds_with_random_faults_lose_none_and_end_as_if_nothing_had_happened(
    federation: Soaked, tmp_path: Path
) -> None:
    chance, due = random.Random(0), time.monotonic() + 60
    wait_until(lambda: federation.look() >= 1, federation.real.programs, 600)
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
    wait_until(lambda: all(each.process.poll() is not None for each in running), federation.real.programs, 600)
    assert [each.process.returncode for each in running] == [0] * 4, federation.link.text[-3000:]
    print("\n".join(federation.faults))
    assert len(federation.faults) >= 8
    assert sorted(federation.seen) == list(range(ROUNDS + 1))
    for who, held in federation.memory.items():
        early = [held[number] for number in held if 55 <= number <= 65]
        late = [held[number] for number in held if number >= 90]
        print(who, [round(max(some) / 1e6) for some in (early, late)], "MB")
        assert max(late) < 1.1 * max(early), f"the memory of the {who} grows"
    rules, model, homes = federation.real.rules, federation.real.model, federation.real.folder / "homes"
    assert federation.seen == undisturbed_rounds(rules, model, homes, tmp_path / "undisturbed")
