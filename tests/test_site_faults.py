"""A link and its sites when a disk is full or a clock is wrong: they say so, wait, and end as if nothing had been."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from real_federations import RealFederation, real_federation
from site_federations import NAMES, undisturbed_rounds
from site_processes import Program, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

ROUNDS = 4
SETTINGS = (f"rounds={ROUNDS}", "steps=1", "batch_size=4", "fraction=1.0", "rank=2", "seed=3", "scored_rounds=last")
_CLOCK = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("SECONDS_AHEAD"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return failed;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict into, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    into->tv_sec = now.tv_sec;
    into->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
"""A wall clock that is as many seconds ahead as a file says; clocks that only measure, and waiting, stay as they are.

libfaketime does the same, but shifts deadlines of waits by it as well.
"""


@dataclass
class Disturbed:
    """A federation under way, to which something happens."""

    real: RealFederation
    running: dict[str, Program] = field(default_factory=dict)

    def start(self, names: Sequence[str]) -> None:
        """Start the link and these sites."""
        self.running["link"] = self.real.start_link()
        for name in names:
            self.start_site(name)

    def start_site(self, name: str) -> None:
        self.running[name] = self.real.start_site(name)

    def rounds(self) -> int:
        """The last round that is committed, -1 before the untrained adapter is."""
        return len(self.real.committed()) - 1

    def wait(self, reached: Callable[[], bool]) -> None:
        wait_until(reached, self.real.programs, 400)

    def ends_as_if_nothing_had_been(self) -> None:
        """Every command ends well, and every round has the bytes of a federation without sites and faults."""
        self.wait(lambda: all(each.process.poll() is not None for each in self.running.values()))
        said = {name: each.text[-2000:] for name, each in self.running.items()}
        assert {name: each.process.returncode for name, each in self.running.items()} == dict.fromkeys(said, 0), said
        real = self.real
        committed = {each.number: each.adapter.read_bytes() for each in real.committed()}
        homes, folder = real.folder / "homes", real.folder / "undisturbed"
        assert len(committed) == ROUNDS + 1
        assert committed == undisturbed_rounds(real.rules, real.model, homes, folder)
        for name in NAMES:
            assert (real.home(name) / "sites" / name / "alerts.jsonl").is_file()


@pytest.fixture
def federation(tiny_model: Path, tmp_path: Path) -> Iterator[Disturbed]:
    with real_federation(tiny_model, tmp_path, SETTINGS) as real:
        yield Disturbed(real)


@dataclass
class SmallDisk:
    """A disk of its own, small enough to fill."""

    folder: Path

    def fill(self) -> None:
        """Leave not a byte free."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path], SmallDisk]]:
    mounted: list[Path] = []

    def at(folder: Path) -> SmallDisk:
        folder.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this user may mount no disk: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return SmallDisk(folder)

    yield at
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_site_with_a_full_disk_waits_for_room_and_sends_nothing_that_its_ledger_lacks(
    federation: Disturbed, small_disk: Callable[[Path], SmallDisk]
) -> None:
    disk = small_disk(federation.real.home("north"))
    federation.start(NAMES)
    federation.wait(lambda: federation.rounds() >= 1)
    disk.fill()
    site, ledger = federation.running["north"], federation.real.home("north") / "sites" / "north" / "ledger.jsonl"
    federation.wait(lambda: "The site waits for room." in site.text)
    assert "disk is full" in site.text or "No space left" in site.text
    before, rounds = ledger.read_bytes(), federation.rounds()
    time.sleep(25)  # longer than the link waits for a silent site
    assert before.endswith(b"\n")
    assert ledger.read_bytes() == before
    assert federation.rounds() == rounds
    assert site.process.poll() is None
    disk.free()
    federation.ends_as_if_nothing_had_been()
    assert site.text.count("The site waits for room.") == 1


def test_a_link_with_a_full_disk_waits_for_room_and_loses_no_round(
    federation: Disturbed, small_disk: Callable[[Path], SmallDisk]
) -> None:
    disk = small_disk(federation.real.home("link"))
    federation.start(NAMES)
    federation.wait(lambda: federation.rounds() >= 1)
    disk.fill()
    link = federation.running["link"]
    federation.wait(lambda: "full" in link.text and "Trying again." in link.text)
    rounds = federation.rounds()
    assert rounds < ROUNDS
    disk.free()
    federation.ends_as_if_nothing_had_been()


def test_a_site_with_a_wrong_clock_says_so_and_goes_on_once_it_is_set(
    federation: Disturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, clock = shutil.which("cc"), federation.real.folder / "clock"
    if compiler is None:
        pytest.skip("there is no C compiler to make a wrong clock with")
    source, library = clock.with_suffix(".c"), clock.with_suffix(".so")
    source.write_text(_CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)

    def differs(seconds: int) -> None:
        new = clock.with_suffix(".new")
        new.write_text(f"{seconds}\n")
        new.replace(clock)

    differs(0)
    federation.start(NAMES[1:])
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("SECONDS_AHEAD", str(clock))
        federation.start_site(NAMES[0])
    site = federation.running[NAMES[0]]
    federation.wait(lambda: federation.rounds() >= 1)
    differs(3600)
    federation.wait(lambda: "clocks of this machine and of the link differ" in site.text)
    stayed = federation.rounds()
    differs(0)
    federation.ends_as_if_nothing_had_been()
    assert stayed < ROUNDS
