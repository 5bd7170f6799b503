"""The life of one HDFS block: allocated, written through a pipeline of nodes, scanned, read, replicated, deleted."""

import random
from dataclasses import dataclass, field

from storage.hdfs_cluster import NAMENODE_HANDLERS, Cluster, Job, MergedLog, Node, Outage

FULL_BLOCK = 67108864
NAMENODE = "INFO dfs.FSNamesystem"
XCEIVER = "INFO dfs.DataNode$DataXceiver"
RESPONDER = "INFO dfs.DataNode$PacketResponder"
RECEIVER = "INFO dfs.DataNode$BlockReceiver"
DATANODE = "INFO dfs.DataNode"
DELETER = 19
"""Thread of a data node's heartbeats, for deletions and transfers; also the name node's replication monitor."""


@dataclass
class Block:
    """One block's facts, and its replicas as they come and go."""

    name: str
    job: Job
    path: str
    size: int
    pipeline: list[Node]
    allocated: float
    """Seconds from START."""
    written: float = 0.0
    """Second at which the last replica was received."""
    threads: list[int] = field(default_factory=list)
    holders: list[Node] = field(default_factory=list)
    reads: int = 0


class Lifecycle:
    """Writes the lines of one block's life into the merged log, as each process sees it on its own clock."""

    def __init__(self, cluster: Cluster, draw: random.Random, log: MergedLog, block: Block) -> None:
        self.cluster = cluster
        self.draw = draw
        self.log = log
        self.block = block

    def soon(self, mean: float) -> float:
        """An exponential waiting time in seconds."""
        return self.draw.expovariate(1 / mean)

    def on(self, node: Node, time: float, thread: int, source: str, message: str) -> None:
        """A line of a data node, on its clock."""
        self.log.write(time + node.clock, thread, source, message)

    def namenode(self, time: float, message: str, level: str = NAMENODE) -> None:
        """A line of one of the name node's request handlers."""
        self.log.write(time, self.draw.randint(*NAMENODE_HANDLERS), level, message)

    def port(self) -> int:
        """An ephemeral port."""
        return self.draw.randint(32768, 60999)

    def allocate(self) -> None:
        """The name node chooses where the block will lie."""
        self.namenode(self.block.allocated, f"BLOCK* NameSystem.allocateBlock: {self.block.path}. {self.block.name}")

    def receive(self, hops: int = 3) -> float:
        """The pipeline opens, node by node; the second at which the last of `hops` nodes is ready."""
        time = self.block.allocated
        for hop in range(hops):
            time += self.soon((0.07, 0.21, 0.26)[hop])
            if self.draw.random() < (0.02, 0.045, 0.045)[hop]:
                time += 3.0 + self.soon(
                    0.3
                )  # the connection's first packet was lost and sent again after three seconds
            node = self.block.pipeline[hop]
            thread = self.cluster.thread(node, time)
            self.block.threads.append(thread)
            self.receiving(self.source(hop), node, time, thread)
        return time

    def receiving(self, source: Node, node: Node, time: float, thread: int) -> None:
        """A node begins to receive; this log shows the sender's address on both sides."""
        address = source.address
        message = f"Receiving block {self.block.name} src: /{address}:{self.port()} dest: /{address}:50010"
        self.on(node, time, thread, XCEIVER, message)

    def source(self, hop: int) -> Node:
        """Who sends to the pipeline's node: the client runs on the first node."""
        return self.block.pipeline[max(0, hop - 1)]

    def finish(self, time: float, empty_packets: bool = False, late: float = 0.0) -> None:
        """The last packet is acknowledged from the pipeline's end to its start, and each node reports its replica."""
        block = self.block
        last = len(block.pipeline) - 1
        for hop in range(last, -1, -1):
            node, thread = block.pipeline[hop], block.threads[hop] + 1
            if empty_packets:
                self.on(
                    node, time - self.soon(0.02), thread, RECEIVER, f"Receiving empty packet for block {block.name}"
                )
            received = f"Received block {block.name} of size {block.size} from /{self.source(hop).address}"
            self.on(node, time, thread, RESPONDER, received)
            end = time + self.soon(0.01)
            self.on(node, end, thread, RESPONDER, f"PacketResponder {last - hop} for block {block.name} terminating")
            self.stored(node, time + self.soon(0.07) + (late if hop == 0 else self._rarely_late()))
            time += self.soon(0.11)
        block.written = time

    def _rarely_late(self) -> float:
        return self.draw.lognormvariate(2.5, 1.5) if self.draw.random() < 0.012 else 0.0

    def stored(self, node: Node, time: float) -> None:
        """The name node books a replica."""
        block = self.block
        if node not in block.holders:
            block.holders.append(node)
        text = f"BLOCK* NameSystem.addStoredBlock: blockMap updated: {node.address}:50010 is added to {block.name}"
        self.namenode(time, f"{text} size {block.size}")

    def write(self, empty_packets: bool = False, late: float = 0.0) -> None:
        """The whole write, from allocation to three booked replicas."""
        self.allocate()
        ready = self.receive()
        typical = self.block.job.seconds
        seconds = max(0.25 * typical, self.draw.gauss(typical, 0.33 * typical))
        if self.block.size < FULL_BLOCK:
            seconds *= self.block.size / FULL_BLOCK * self.draw.lognormvariate(0, 0.6)
        self.finish(ready + seconds, empty_packets, late)

    def invalidate(self, time: float, nodes: list[Node]) -> None:
        """The name node marks the replicas for deletion, all in one request."""
        thread = self.draw.randint(*NAMENODE_HANDLERS)
        for node in nodes:
            message = f"BLOCK* NameSystem.delete: {self.block.name} is added to invalidSet of {node.address}:50010"
            self.log.write(time, thread, NAMENODE, message)

    def delete_on(self, node: Node, time: float) -> None:
        """A data node removes its replica."""
        sub = "" if self.draw.random() < 0.045 else f"/subdir{self.draw.randint(0, 63)}"
        message = f"Deleting block {self.block.name} file /mnt/hadoop/dfs/data/current{sub}/{self.block.name}"
        self.on(node, time, self.draw.choice((18, DELETER)), "INFO dfs.FSDataset", message)

    def delete_failed(self, node: Node, time: float) -> None:
        """A data node is told to remove a replica that it no longer has."""
        message = f"Unexpected error trying to delete block {self.block.name}. BlockInfo not found in volumeMap."
        self.on(node, time, self.draw.choice((18, DELETER)), "WARN dfs.FSDataset", message)

    def deletion_lag(self) -> float:
        """Seconds until a data node asks for its deletions and gets to this one."""
        return 0.2 + self.soon(45) if self.draw.random() < 0.03 else self.draw.gammavariate(3.4, 57)

    def delete(self, time: float) -> None:
        """The ordinary end: three replicas marked, three removed."""
        self.invalidate(time, self.block.holders)
        for node in self.block.holders:
            self.delete_on(node, time + self.deletion_lag())

    def replicate(self, time: float, source: Node, targets: list[Node], arrives: bool = True) -> float:
        """The replication monitor has a node send its replica to others; the second at which they have it."""
        block, draw = self.block, self.draw
        to = " ".join(f"{node.address}:50010" for node in targets)
        asked = f"BLOCK* ask {source.address}:50010 to replicate {block.name} to datanode(s) {to}"
        self.log.write(time, DELETER, NAMENODE, asked)
        start = time + (self.soon(2.0) if draw.random() < 0.6 else draw.uniform(2, 70))
        to = ", ".join(f"{node.address}:50010" for node in targets)
        starting = f"{source.address}:50010 Starting thread to transfer block {block.name} to {to}"
        self.on(source, start, DELETER, DATANODE, starting)
        if not arrives:
            return start
        seconds = (1 + draw.gammavariate(4, 7.5)) * max(0.03, block.size / FULL_BLOCK)
        end = start + seconds
        for node in targets:
            thread, begin, port = self.cluster.thread(node, start), start + self.soon(0.5), self.port()
            ends = f"{block.name} src: /{source.address}:{port} dest: /{source.address}:50010"
            self.on(node, begin, thread, XCEIVER, f"Receiving block {ends}")
            self.on(node, end, thread, XCEIVER, f"Received block {ends} of size {block.size}")
            self.stored(node, end + self.soon(0.05))
        message = f"{source.address}:50010:Transmitted block {block.name} to /{targets[0].address}:50010"
        self.on(source, end, self.cluster.thread(source, end), "INFO dfs.DataNode$DataTransfer", message)
        return end

    def outage(self, outage: Outage, returns: bool = True) -> None:
        """A holding node is given up; its replica is made anew and, when it returns, the surplus one removed."""
        block = self.block
        lost = self.draw.choice(block.holders)
        source = self.draw.choice([node for node in block.holders if node is not lost])
        self.replicate(outage.lost + self.soon(2), source, [self.other_node()])
        if returns:
            back = max(outage.back, outage.lost + 150) + self.soon(4)
            self.stored(lost, back)
            surplus = self.draw.choice(block.holders)
            block.holders.remove(surplus)
            self.delete_on(surplus, back + 3 + self.soon(7))
        else:
            block.holders.remove(lost)

    def other_node(self) -> Node:
        """A node without a replica."""
        while (node := self.draw.choice(self.cluster.nodes)) in self.block.holders:
            pass
        return node
