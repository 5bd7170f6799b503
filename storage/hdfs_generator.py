"""A seeded generator of HDFS logs: lives of blocks on a simulated cluster, written as raw lines with labels.

No stored sequence is replayed. Each process of a block's life writes at its own time on its own clock, and the order
of a window's lines comes out of merging them (see storage.hdfs_cluster). How close this is to the real log stands in
docs/results/hdfs-sim.md.
"""

import csv
import random
from collections.abc import Iterator
from pathlib import Path

from storage.errors import DataError
from storage.hdfs_cluster import Cluster, Job, MergedLog
from storage.hdfs_failures import (
    FAILURES,
    Failure,
    namenode_not_updated,
    outages_between,
    short_after_write,
)
from storage.hdfs_lifecycle import FULL_BLOCK, Block, Lifecycle
from storage.hdfs_service import ordinary_end
from storage.progress import Progress, silent

LOG, LABELS = "HDFS.log", "anomaly_label.csv"
ANOMALOUS = 0.031
"""Share of blocks with a failure; nearly all are labelled so (350 of 11,501 in the 2 % sample of HDFS_v1)."""
_GOLDEN = (5**0.5 - 1) / 2


def generate(folder: Path, blocks: int, seed: int, progress: Progress = silent) -> dict[str, int]:
    """Write `HDFS.log` and `anomaly_label.csv` (BlockId,Label,Kind) of so many blocks; the same bytes for a seed.

    A block's life does not depend on the number of blocks: fewer blocks are a thinner sample of the same days.
    Needs about 200 bytes of memory a line, 20 lines a block.
    """
    if blocks < 1:
        raise DataError(f"A log of {blocks} blocks is empty; set blocks to 1 at least.")
    cluster, log = Cluster(seed), MergedLog()
    labels = []
    for index, failure in enumerate(_failures(seed, blocks)):
        labels.append(_live(cluster, random.Random(f"{seed}/{index}"), log, failure))
        if index % 500 == 499:
            progress(index + 1, blocks, "blocks simulated")
    folder.mkdir(parents=True, exist_ok=True)
    log.save(folder / LOG)
    with (folder / LABELS).open("w", encoding="ascii", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("BlockId", "Label", "Kind"))
        rows.writerows((name, "Anomaly" if kind else "Normal", kind) for _, name, kind in sorted(labels))
    progress(blocks, blocks, "blocks simulated")
    anomalous = sum(kind != "" for _, _, kind in labels)
    return {"lines": log.lines, "blocks": blocks, "anomalous": anomalous}


def _failures(seed: int, blocks: int) -> Iterator[Failure | None]:
    """The failure of each block, or None; kinds keep their shares within one or two blocks in any number of them.

    Multiples of the golden ratio fill the unit interval evenly (Weyl), where independent draws would leave a small log
    without some kinds; the failures share its beginning.
    """
    total = sum(failure.count for failure in FAILURES)
    offset = random.Random(f"failures/{seed}").random()
    for index in range(blocks):
        place = (offset + index * _GOLDEN) % 1 / ANOMALOUS * total
        for failure in FAILURES if place < total else ():
            place -= failure.count
            if place < 0:
                yield failure
                break
        else:
            yield None


def _live(cluster: Cluster, draw: random.Random, log: MergedLog, failure: Failure | None) -> tuple[float, str, str]:
    """One block's life; when it was allocated, its name, and its failure kind (empty: normal)."""
    block, deleted = _block(cluster, draw)
    while failure is not None and not failure.befalls(cluster, block, deleted):
        block, deleted = _block(cluster, draw)
    life = Lifecycle(cluster, draw, log, block)
    if failure is None:
        normal_life(life, deleted)
        return block.allocated, block.name, ""
    failure.life(life, deleted)
    return block.allocated, block.name, "" if _passes_for_normal(failure, block) else failure.kind


def _passes_for_normal(failure: Failure, block: Block) -> bool:
    """HDFS_v1 labels a block whose deletion was repeated as normal where all four word counts had read it in full."""
    return failure.life is namenode_not_updated and block.reads >= 12


def _block(cluster: Cluster, draw: random.Random) -> tuple[Block, float | None]:
    """A block of some job, and when it is removed."""
    job = cluster.job(draw)
    name = f"blk_{draw.randrange(-(1 << 63), 1 << 63)}"
    part = draw.randrange(2000)
    attempt = 1 if draw.random() < 0.03 else 0
    path = f"/user/root/{job.folder}/_temporary/_task_{job.task}_{part:06d}_{attempt}/part-{part:05d}"
    if draw.random() < 0.0002:
        date, number, _ = job.task.split("_")
        job_tracker = cluster.nodes[0].address.replace(".", "-")
        writer = "random-text-writer" if "txt" in job.folder else "random-writer"
        history = f"ip-{job_tracker}.ec2.internal_{draw.randrange(10**12, 10**13)}_job_{date}_{number}_root_{writer}"
        path = f"/user/root/{job.folder}/_logs/history/{history}"
    size = FULL_BLOCK if draw.random() < 0.944 else draw.randint(3_500_000, 3_600_000)
    allocated = (job.start + draw.random() * job.minutes) * 60
    return Block(name, job, path, size, draw.sample(cluster.nodes, 3), allocated), _deleted(draw, job)


def _deleted(draw: random.Random, job: Job) -> float | None:
    """When the block is removed: with its folder, or as the output of a needless second attempt when the job ends."""
    if draw.random() < 0.035:
        return job.end * 60 + draw.uniform(5, 60)
    return None if job.deleted is None else job.deleted * 60 + draw.uniform(0, 60)


def normal_life(life: Lifecycle, deleted: float | None) -> None:
    """A life without failure; where the folder is not removed, replicas made anew are labelled normal, too."""
    if deleted is None and life.draw.random() < 0.0025:
        short_after_write(life)
    else:
        life.write()
        if deleted is None and life.draw.random() < 0.016:
            _outages(life)
    ordinary_end(life, deleted)


def _outages(life: Lifecycle) -> None:
    outages = outages_between(life.cluster, life.block, None)
    if outages:
        several = outages if life.draw.random() < 0.12 else [life.draw.choice(outages)]
        for outage in several:
            life.outage(outage, returns=life.draw.random() < 0.85)
