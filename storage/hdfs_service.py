"""What a written block goes through until its end: scans by its holders, reads by later jobs, and removal."""

from storage.hdfs_cluster import END, Pass
from storage.hdfs_lifecycle import FULL_BLOCK, XCEIVER, Lifecycle


def scan(life: Lifecycle, until: float) -> None:
    """The block scanners of the holding nodes verify the replica once in a while, each at most once here."""
    # A node goes on scanning what the name node has given up until it is told so.
    alive = max(0.0, until - life.block.written) + life.draw.uniform(0, 80)
    chance = life.block.job.scanned
    if chance > 0.2:
        # Early blocks head the scanners' queues on all their nodes alike, so their replicas are scanned together.
        chance = life.draw.betavariate(2 * chance, 2 * (1 - chance))
    for node in life.block.holders[:3]:
        if life.draw.random() < chance:
            time = life.block.written + life.draw.random() * alive
            message = f"Verification succeeded for {life.block.name}"
            life.on(node, time, 13, "INFO dfs.DataBlockScanner", message)


def read(life: Lifecycle) -> None:
    """The jobs that read the folder pass over the block."""
    for reading in life.block.job.passes:
        if life.draw.random() < reading.share:
            begin = (reading.start + life.draw.random() * reading.minutes) * 60
            _read_once(life, reading, begin)


def _read_once(life: Lifecycle, reading: Pass, begin: float) -> None:
    if reading.kind == "sort":
        _read_by_sort(life, begin)
        return
    slow, head_start = (4.0, 48) if reading.kind == "slow text" else (1.0, 6)
    full = life.block.size == FULL_BLOCK
    for _ in range(2):
        _served(life, begin + life.soon(18 * slow))
    if full:
        _broken_off(life, begin + head_start + life.soon(24 * slow))
    life.block.reads += 2 + full


def _read_by_sort(life: Lifecycle, begin: float) -> None:
    """The split's reader opens twice (first stream closed early); the split before reads over its own end."""
    _served(life, begin + life.soon(14))
    if life.block.size < FULL_BLOCK:
        return
    _broken_off(life, begin)
    _broken_off(life, begin + life.soon(14))
    if life.draw.random() < 0.065:
        # The first block of a file is where the sampler for the total order looks.
        for _ in range(13 if life.draw.random() < 0.97 else life.draw.randint(18, 20)):
            _broken_off(life, begin + life.soon(30) - 30)


def _served(life: Lifecycle, time: float) -> None:
    """A replica was read to its end."""
    if life.draw.random() < 0.99:
        node = life.draw.choice(life.block.holders)
        reader = node if life.draw.random() < 0.5 else life.draw.choice(life.cluster.nodes)
        message = f"{node.address}:50010 Served block {life.block.name} to /{reader.address}"
        life.on(node, time, life.cluster.thread(node, time), XCEIVER, message)


def _broken_off(life: Lifecycle, time: float) -> None:
    """A reader closed the stream before its end, which this log calls an exception."""
    if life.draw.random() < 0.995:
        node = life.draw.choice(life.block.holders)
        reader = node if life.draw.random() < 0.12 else life.draw.choice(life.cluster.nodes)
        message = f"{node.address}:50010:Got exception while serving {life.block.name} to /{reader.address}:"
        life.on(node, time, life.cluster.thread(node, time), "WARN dfs.DataNode$DataXceiver", message)


def live_until(life: Lifecycle, deleted: float | None) -> None:
    """Scans and reads until the deletion, if there is one."""
    scan(life, END if deleted is None else deleted)
    if deleted is None or deleted > life.block.job.end * 60 + 300:
        read(life)


def ordinary_end(life: Lifecycle, deleted: float | None) -> None:
    """Scans, reads and the deletion, as for any block."""
    live_until(life, deleted)
    if deleted is not None:
        life.delete(deleted)
