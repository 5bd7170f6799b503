"""The simulated Hadoop cluster: nodes with clocks and thread counters, the schedule of jobs, and the merged log.

The forms of the messages are those of HDFS_v1; the schedule is a day and a half of the benchmark that log is known for:
random writers and random text writers, sorts and word counts over what they wrote, and the removal of their folders.
"""

import random
from bisect import bisect
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path

START = datetime(2008, 11, 9, 20, 35)
END = 2335 * 60.0
"""Seconds from START at which collection stopped; what happens later leaves no line."""
NAMENODE_HANDLERS = (26, 35)
NODES = 203


@dataclass(frozen=True)
class Pass:
    """One job's reading of the blocks that another wrote."""

    start: float
    """Minutes from START."""
    minutes: float
    kind: str
    """`sort`: the split's own reader and that of the split before it; `text`: a second, speculative reader besides."""
    share: float = 1.0
    """Share of the blocks that are read."""


@dataclass(frozen=True)
class Job:
    """A job that writes blocks into one folder."""

    folder: str
    task: str
    start: float
    """Minutes from START."""
    minutes: float
    weight: float
    """Its share of all blocks, relative to the other jobs."""
    deleted: float | None
    """Minute at which the folder is removed; None: it outlives the log."""
    scanned: float = 0.01
    """Chance that the block scanner gets to a replica while it lives: high while the cluster is still empty."""
    seconds: float = 38.0
    """Typical time to write a full block."""
    passes: tuple[Pass, ...] = ()

    @property
    def end(self) -> float:
        """Minute at which the last block is written."""
        return self.start + self.minutes


JOBS = (
    Job("rand", "200811092030_0001_m", 0, 62, 720, 836, 0.44, 38, (Pass(64, 85, "sort"),)),
    Job("sortrand", "200811092030_0002_r", 167, 98, 715, 837, 0.085, 26),
    Job(
        "randtxt",
        "200811092030_0003_m",
        267,
        64,
        748,
        836,
        0.03,
        39,
        (Pass(335, 90, "text"), Pass(618, 10, "text"), Pass(686, 10, "text"), Pass(755, 22, "text", 0.55)),
    ),
    Job("wcnt0", "200811092030_0004_r", 602, 6, 8, 836, 0.01, 15),
    Job("rand", "200811101024_0001_m", 838, 62, 710, 1467, 0.31, 38, (Pass(1037, 11, "sort"),)),
    Job(
        "randtxt2",
        "200811101024_0002_m",
        902,
        62,
        701,
        1796,
        0.09,
        38,
        (Pass(1185, 250, "slow text"), Pass(1600, 196, "slow text", 0.75)),
    ),
    Job("sortrand2", "200811101024_0003_r", 1072, 60, 655, 1466, 0.02, 24),
    Job("wcnt1", "200811101024_0004_r", 1445, 10, 10, None, 0.03, 14),
    Job("rand3", "200811101024_0005_m", 1467, 64, 688, 1532),
    Job("randtxt3", "200811101024_0007_m", 1532, 64, 723, 1928, 0.047, 40),
    Job("rand4", "200811101024_0009_m", 1796, 67, 740, 1928, 0.013, 37),
    Job("randtxt4", "200811101024_0010_m", 1864, 64, 726, None, 0.034, 40),
    Job("rand5", "200811101024_0011_m", 1929, 64, 741, 2121, 0.017, 39),
    Job("randtxt5", "200811101024_0012_m", 1993, 62, 685, 2057, 0.004, 39),
    Job("rand6", "200811101024_0013_m", 2058, 62, 740, 2184, 0.006),
    Job("rand7", "200811101024_0014_m", 2122, 61, 782, None),
    Job("rand8", "200811101024_0015_m", 2185, 60, 710, None),
    Job("randtxt9", "200811101024_0016_m", 2247, 61, 697, 2309, 0.006, 39),
)


@dataclass(frozen=True)
class Node:
    """A data node: address, clock, and how busy it has been."""

    address: str
    clock: float
    """Seconds by which its clock is ahead."""
    busy: float
    """Its threads started, relative to the mean node's."""


@dataclass(frozen=True)
class Outage:
    """A data node that is given up at a time and comes back with its replicas later; seconds from START."""

    lost: float
    back: float


@dataclass
class Cluster:
    """Everything that blocks share; the same for the same seed."""

    seed: int
    nodes: list[Node] = field(init=False)
    outages: list[Outage] = field(init=False)

    def __post_init__(self) -> None:
        draw = random.Random(f"cluster/{self.seed}")
        addresses = [f"10.{draw.choice((250, 251, 251, 251))}.{host // 256}.{host % 256}" for host in _hosts(draw)]
        self.nodes = [
            Node(address, draw.gauss(0, 0.03), draw.gauss(1, 0.02) if draw.random() < 0.985 else draw.uniform(0.3, 0.9))
            for address in addresses
        ]
        lost = [minute * 60 + draw.uniform(-300, 300) for minute in (852, 1484, 1545, 1945, 2070, 2135, 2199)]
        self.outages = [Outage(at, at + draw.choice((draw.uniform(60, 420), draw.uniform(400, 1150)))) for at in lost]
        self._weights = list(accumulate(job.weight for job in JOBS))

    def job(self, draw: random.Random) -> Job:
        """A job, by its share of the blocks."""
        return JOBS[bisect(self._weights, draw.random() * self._weights[-1])]

    def thread(self, node: Node, time: float) -> int:
        """The number of the thread that a data node starts at a time; they count up with the work done."""
        return int(145 + node.busy * _threads_started(int(time) // 60))


def _hosts(draw: random.Random) -> list[int]:
    return draw.sample(range(256 * 4, 256 * 216), NODES)


@cache
def _threads_started(minute: int) -> float:
    """Threads that a mean node started by a minute: 5 a minute, 14 more while a job writes, 33 in the first job."""
    written = sum(
        (33 if job is JOBS[0] else 14) * max(0.0, min(minute - job.start, job.minutes))
        for job in JOBS
        if job.weight > 100
    )
    return 5 * minute + written


_PUNCTUATION = {code: None for code in range(128) if not chr(code).isalnum()}


class MergedLog:
    """Lines of all hosts, merged as HDFS_v1 was: sorted as text, by letters and digits alone.

    So lines of one second follow the text of their thread numbers, and the name node's (26 to 35) stand before or after
    the data nodes' depending on how far those have counted. Most of that log's distinct sequences come from there.
    """

    def __init__(self) -> None:
        self._hours: dict[int, bytearray] = {}
        self.lines = 0

    def write(self, time: float, thread: int, source: str, message: str) -> None:
        """Add a line at `time` (seconds from START, on the writing host's clock); `source` is level and component."""
        if 0 <= time < END:
            line = f"{_stamp(int(time))} {thread} {source}: {message}\n"
            self._hours.setdefault(int(time) // 3600, bytearray()).extend(line.encode())
            self.lines += 1

    def save(self, path: Path) -> None:
        """Write all lines in order."""
        with path.open("w", encoding="ascii", newline="\n") as file:
            for hour in sorted(self._hours):
                lines = self._hours.pop(hour).decode().splitlines(keepends=True)
                lines.sort(key=_collation)
                file.writelines(lines)


def _collation(line: str) -> str:
    return line.translate(_PUNCTUATION).lower()


@lru_cache(maxsize=1 << 16)
def _stamp(second: int) -> str:
    return (START + timedelta(seconds=second)).strftime("%y%m%d %H%M%S")
