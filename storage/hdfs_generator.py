"""A seeded generator of HDFS logs: lives of blocks on a simulated cluster, written as raw lines with labels.

No stored sequence is replayed. Each process of a block's life writes at its own time on its own clock, and the order of a
window's lines comes out of merging them (see storage.hdfs_cluster). How close this is to the real log is measured in
docs/results/hdfs-sim.md.
"""

import csv
import random
from bisect import bisect
from collections import Counter
from itertools import accumulate
from pathlib import Path

from storage.errors import DataError
from storage.hdfs_cluster import END, Cluster, Job, MergedLog
from storage.hdfs_failures import FAILURES, Failure, ordinary_end, outages_between, repeated_deletion
from storage.hdfs_lifecycle import FULL_BLOCK, Block, Lifecycle
from storage.progress import Progress, silent

LOG, LABELS = "HDFS.log", "anomaly_label.csv"
ANOMALOUS = 0.0304
"""Share of anomalous blocks, as in HDFS_v1's 2 % sample (350 of 11,501)."""

_COUNTS = list(accumulate(failure.count for failure in FAILURES))


def generate(folder: Path, blocks: int, seed: int, progress: Progress = silent) -> dict[str, int]:
    """Write `HDFS.log` and `anomaly_label.csv` (BlockId,Label,Kind) of so many blocks; the same bytes for the same seed.

    A block's life does not depend on the number of blocks: fewer blocks are a thinner sample of the same day and a half.
    Needs about 200 bytes of memory a line, 20 lines a block.
    """
    if blocks < 1:
        raise DataError(f"A log of {blocks} blocks is empty; set blocks to 1 at least.")
    cluster, log = Cluster(seed), MergedLog()
    labels = []
    for index in range(blocks):
        labels.append(_live(cluster, random.Random(f"{seed}/{index}"), log))
        if index % 500 == 499:
            progress(index + 1, blocks, "blocks simulated")
    folder.mkdir(parents=True, exist_ok=True)
    log.save(folder / LOG)
    with (folder / LABELS).open("w", encoding="ascii", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("BlockId", "Label", "Kind"))
        rows.writerows((name, "Anomaly" if kind else "Normal", kind) for _, name, kind in sorted(labels))
    progress(blocks, blocks, "blocks simulated")
    kinds = Counter(kind for _, _, kind in labels)
    return {"lines": log.lines, "blocks": blocks, "anomalous": blocks - kinds[""]}


def _live(cluster: Cluster, draw: random.Random, log: MergedLog) -> tuple[float, str, str]:
    """One block's life; when it was allocated, its name, and its failure kind (empty: normal)."""
    failure = FAILURES[bisect(_COUNTS, draw.random() * _COUNTS[-1])] if draw.random() < ANOMALOUS else None
    job = cluster.job(draw)
    while failure is not None and failure.needs_deletion and job.deleted is None:
        job = cluster.job(draw)
    block = _block(cluster, draw, job)
    life = Lifecycle(cluster, draw, log, block)
    deleted = _deleted(draw, job)
    if failure is None:
        normal_life(life, deleted)
        return block.allocated, block.name, ""
    failure.life(life, deleted)
    return block.allocated, block.name, "" if _passes_for_normal(failure, block) else failure.kind


def _passes_for_normal(failure: Failure, block: Block) -> bool:
    """HDFS_v1 labels a block whose deletion was repeated as normal where all four word counts had read it in full."""
    return failure is FAILURES[0] and block.reads >= 12


def _block(cluster: Cluster, draw: random.Random, job: Job) -> Block:
    name = f"blk_{draw.randrange(-(1 << 63), 1 << 63)}"
    part = draw.randrange(2000)
    attempt = 1 if draw.random() < 0.03 else 0
    path = f"/user/root/{job.folder}/_temporary/_task_{job.task}_{part:06d}_{attempt}/part-{part:05d}"
    if draw.random() < 0.0002:
        number, writer = job.task.split("_")[1], "random-text-writer" if "txt" in job.folder else "random-writer"
        host = "ip-10-250-19-102.ec2.internal"
        path = f"/user/root/{job.folder}/_logs/history/{host}_1226341485991_job_200811101024_{number}_root_{writer}"
    size = FULL_BLOCK if draw.random() < 0.944 else draw.randint(3_500_000, 3_600_000)
    allocated = (job.start + draw.random() * job.minutes) * 60
    return Block(name, job, path, size, draw.sample(cluster.nodes, 3), allocated)


def _deleted(draw: random.Random, job: Job) -> float | None:
    """When the block is removed: with its folder, or as the output of a needless second attempt when the job ends."""
    if draw.random() < 0.035:
        return job.end * 60 + draw.uniform(5, 60)
    return None if job.deleted is None else job.deleted * 60 + draw.uniform(0, 60)


def normal_life(life: Lifecycle, deleted: float | None) -> None:
    """A life without failure; where the folder is not removed, a lost node's replica may be made anew."""
    life.write()
    outages = outages_between(life, deleted)
    if deleted is None and outages and life.draw.random() < 0.014:
        several = outages if life.draw.random() < 0.12 else [life.draw.choice(outages)]
        for outage in several:
            life.outage(outage, returns=life.draw.random() < 0.85)
    ordinary_end(life, deleted)


__all__ = ["END", "generate", "normal_life", "repeated_deletion"]
