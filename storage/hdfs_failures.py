"""The failures that Xu et al. found in this log (SOSP 2009, table of detected anomalies), as lives of a block.

Each kind's share is its count in that table. Texts are those of HDFS_v1; what leads to them here is our reading of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from storage.hdfs_cluster import END, NAMENODE_HANDLERS, Cluster, Outage
from storage.hdfs_lifecycle import XCEIVER, Block, Lifecycle
from storage.hdfs_pipeline import receive_exception
from storage.hdfs_service import live_until, ordinary_end

Life = Callable[[Lifecycle, float | None], None]
"""Writes a whole life, given the second at which the block's folder is removed (None: it is not)."""


Condition = Callable[[Cluster, Block, float | None], bool]
"""Whether a failure can befall a block of the cluster, given the second at which its folder is removed."""


def always(cluster: Cluster, block: Block, deleted: float | None) -> bool:
    """Any block."""
    return True


def is_deleted(cluster: Cluster, block: Block, deleted: float | None) -> bool:
    """Blocks whose folder is removed before the log ends."""
    return deleted is not None


def is_read_often(cluster: Cluster, block: Block, deleted: float | None) -> bool:
    """Blocks that several jobs read before they are removed."""
    return deleted is not None and len(block.job.passes) > 2


def sees_outage(cluster: Cluster, block: Block, deleted: float | None) -> bool:
    """Blocks during whose life a node is lost and comes back."""
    return deleted is not None and bool(outages_between(cluster, block, deleted))


def outages_between(cluster: Cluster, block: Block, deleted: float | None) -> list[Outage]:
    """The outages that begin and end while the block lives."""
    first = block.allocated + 400
    last = (END if deleted is None else deleted) - 120
    return [outage for outage in cluster.outages if first < outage.lost and outage.back < last]


@dataclass(frozen=True)
class Failure:
    """A kind of failure, how often it was counted, and which blocks it can befall."""

    kind: str
    count: int
    life: Life
    befalls: Condition = always


def namenode_not_updated(life: Lifecycle, deleted: float | None) -> None:
    """A replica is removed, the name node forgets that it was, and asks for it again."""
    life.write()
    live_until(life, deleted)
    if deleted is not None:
        repeated_deletion(life, deleted)


def repeated_deletion(life: Lifecycle, deleted: float) -> None:
    """An ordinary deletion after which one node, seldom two, is asked once more."""
    life.invalidate(deleted, life.block.holders)
    again = life.draw.sample(life.block.holders, 2 if life.draw.random() < 0.04 else 1)
    for node in life.block.holders:
        time = deleted + life.deletion_lag()
        life.delete_on(node, time)
        if node in again:
            life.delete_failed(node, time + 5 + life.soon(130))


def write_exception(life: Lifecycle, deleted: float | None) -> None:
    """The second node never gets the stream; the client gives the block up."""
    life.allocate()
    ready = life.receive(hops=2)
    node = life.block.pipeline[0]
    message = f"writeBlock {life.block.name} received exception java.io.IOException: Could not read from stream"
    life.on(node, ready + 3.1 + life.soon(0.4), life.block.threads[0], XCEIVER, message)


def write_failed_at_beginning(life: Lifecycle, deleted: float | None) -> None:
    """The first node begins and nothing follows."""
    life.allocate()
    life.receive(hops=1)


def replica_immediately_deleted(life: Lifecycle, deleted: float | None) -> None:
    """A block short of a replica gets a new one, and the surplus is removed when the missing one reports."""
    life.write()
    outages = outages_between(life.cluster, life.block, deleted)
    count = 2 if life.draw.random() < 0.4 else 1
    for outage in sorted(life.draw.sample(outages, min(count, len(outages))), key=lambda outage: outage.lost):
        life.outage(outage)
    ordinary_end(life, deleted)


def surplus_after_write(life: Lifecycle, deleted: float | None) -> None:
    """The same, where the third replica was only late to report."""
    short_after_write(life)
    ordinary_end(life, deleted)


def short_after_write(life: Lifecycle) -> None:
    """The file is closed before the third replica reports, and the monitor passes by just then."""
    life.write(late=0.3 + life.soon(1.5))
    block, draw = life.block, life.draw
    asked = block.written + draw.uniform(-0.5, 0.6)
    arrived = life.replicate(asked, block.pipeline[2], [life.other_node()])
    surplus = draw.choice(block.holders)
    block.holders.remove(surplus)
    life.delete_on(surplus, arrived + life.soon(4))


def unknown_block(life: Lifecycle, deleted: float | None) -> None:
    """A node that was away during the deletion comes back and reports a replica of no file."""
    life.write()
    live_until(life, deleted)
    if deleted is None:
        return
    life.invalidate(deleted, life.block.holders)
    away = life.draw.choice(life.block.holders)
    for node in life.block.holders:
        if node is not away:
            life.delete_on(node, deleted + life.deletion_lag())
    back = deleted + 900 + life.soon(60)
    text = f"BLOCK* NameSystem.addStoredBlock: addStoredBlock request received for {life.block.name}"
    size = f"size {life.block.size} But it does not belong to any file."
    life.namenode(back, f"{text} on {away.address}:50010 {size}")
    life.stored(away, back + life.soon(0.05))
    life.delete_on(away, back + life.deletion_lag())


def redundant_report(life: Lifecycle, deleted: float | None) -> None:
    """A node reports the same replica twice."""
    life.write()
    node = life.draw.choice(life.block.pipeline)
    text = f"Redundant addStoredBlock request received for {life.block.name} on {node.address}:50010"
    time = life.block.written + life.draw.uniform(-0.2, 0.8)
    message = f"BLOCK* NameSystem.addStoredBlock: {text} size {life.block.size}"
    life.namenode(time, message, "WARN dfs.FSNamesystem")
    ordinary_end(life, deleted)


def replica_gone(life: Lifecycle, deleted: float | None) -> None:
    """The removal of a surplus replica is not booked, so that the deletion asks a node that no longer has it."""
    outages = outages_between(life.cluster, life.block, deleted)
    if outages:
        life.write()
        life.outage(life.draw.choice(outages))
    else:
        short_after_write(life)
    live_until(life, deleted)
    if deleted is None:
        return
    gone = life.other_node()
    life.invalidate(deleted, [*life.block.holders, gone])
    for node in life.block.holders:
        life.delete_on(node, deleted + life.deletion_lag())
    life.delete_failed(gone, deleted + life.deletion_lag())


def empty_packet(life: Lifecycle, deleted: float | None) -> None:
    """The write ends with a packet without data."""
    life.write(empty_packets=True)
    ordinary_end(life, deleted)


def replication_timed_out(life: Lifecycle, deleted: float | None) -> None:
    """A replica that was asked for never arrives; the monitor notices and asks again."""
    life.write()
    asked = life.block.written + life.draw.uniform(60, 400)
    source = life.block.pipeline[1]
    life.replicate(asked, source, [life.other_node()], arrives=False)
    noticed = asked + 600 + life.soon(60)
    monitor = "WARN dfs.PendingReplicationBlocks$PendingReplicationMonitor"
    text = f"PendingReplicationMonitor timed out block {life.block.name}"
    life.log.write(noticed, NAMENODE_HANDLERS[0] - 6, monitor, text)
    life.replicate(noticed + life.soon(3), source, [life.other_node()])
    life.block.holders.pop(0)
    ordinary_end(life, deleted)


def lost_transfer(life: Lifecycle, deleted: float | None) -> None:
    """A transfer starts and no node ever receives it."""
    life.write(late=0.3 + life.soon(1.5))
    life.replicate(life.block.written, life.block.pipeline[2], [life.other_node()], arrives=False)
    ordinary_end(life, deleted)


FAILURES = (
    Failure("Namenode not updated after deleting block", 3850, namenode_not_updated, is_deleted),
    Failure("Namenode not updated after deleting block", 447, namenode_not_updated, is_read_often),
    Failure("Write exception client give up", 3225, write_exception),
    Failure("Write failed at beginning", 2950, write_failed_at_beginning),
    Failure("Replica immediately deleted", 1959, replica_immediately_deleted, sees_outage),
    Failure("Replica immediately deleted", 850, surplus_after_write, is_deleted),
    Failure("Received block that does not belong to any file", 1240, unknown_block, is_deleted),
    Failure("Redundant addStoredBlock request received", 953, redundant_report),
    Failure("Delete a block that no longer exists on data node", 505, replica_gone, sees_outage),
    Failure("Delete a block that no longer exists on data node", 219, replica_gone, is_deleted),
    Failure("Empty packet for block", 476, empty_packet),
    Failure("Receive block exception", 89, receive_exception),
    Failure("Replication monitor timed out", 45, replication_timed_out),
    Failure("Other", 108, lost_transfer),
)
