"""A write pipeline that stalls and is rebuilt: the longest of the known failures, in the texts of the three nodes."""

from storage.hdfs_lifecycle import RECEIVER, RESPONDER, XCEIVER, Lifecycle
from storage.hdfs_service import ordinary_end

_CHANNEL = "java.nio.channels.SocketChannel"


def receive_exception(life: Lifecycle, deleted: float | None) -> None:
    """A stream stalls, every node breaks off in its way, and two go on with what had arrived."""
    life.allocate()
    time = life.receive() + life.draw.uniform(125, 600)
    _stall(life, time)
    time += life.draw.uniform(1, 8)
    _break_off(life, time)
    _resume(life, time)
    life.finish(time + life.draw.uniform(20, 500))
    asked = life.block.written + life.draw.uniform(3, 400)
    free = [node for node in life.cluster.nodes if node not in life.block.holders]
    life.replicate(asked, life.block.pipeline[0], life.draw.sample(free, life.draw.randint(1, 2)))
    ordinary_end(life, deleted)


def _stall(life: Lifecycle, time: float) -> None:
    """The first node waits two minutes for an acknowledgement."""
    name, thread = life.block.name, life.block.threads[0] + 1
    timeout = "120000 millis timeout while waiting for channel to be ready for read. ch"
    timeout = f"java.net.SocketTimeoutException: {timeout} : {_CHANNEL}[connected {_ends(life)}]"
    message = f"PacketResponder {name} 2 Exception {timeout}"
    life.on(life.block.pipeline[0], time, thread, RESPONDER, message)
    life.on(life.block.pipeline[0], time, thread, RESPONDER, f"PacketResponder 2 for block {name} terminating")


def _ends(life: Lifecycle) -> str:
    first, second = life.block.pipeline[:2]
    return f"local=/{first.address}:{life.port()} remote=/{second.address}:50010"


def _break_off(life: Lifecycle, time: float) -> None:
    """Receivers and responders of the three nodes end with what they were doing."""
    block = life.block
    broken = f"Exception in receiveBlock for block {block.name} java.io."
    failed = f"writeBlock {block.name} received exception java.io."
    reset = "IOException: Connection reset by peer"
    mirror = f"{block.pipeline[0].address}:50010:Exception writing block {block.name} to mirror"
    waiting = f"InterruptedIOException: Interruped while waiting for IO on channel {_CHANNEL}"
    left = f"{life.draw.randint(50000, 59999)} millis timeout left."
    ways = (
        (0, 0, RECEIVER, f"{mirror} {block.pipeline[1].address}:50010"),
        (0, 0, RECEIVER, f"{broken}{reset}"),
        (0, 0, XCEIVER, f"{failed}{reset}"),
        (1, 0, RECEIVER, f"{broken}{waiting}[connected {_ends(life)}]. 0 millis timeout left."),
        (1, 0, XCEIVER, f"{failed}IOException: Interrupted receiveBlock"),
        (1, 1, RESPONDER, f"PacketResponder {block.name} 1 Exception java.io.{waiting}[closed]. {left}"),
        (1, 1, RESPONDER, f"PacketResponder 1 for block {block.name} terminating"),
        (2, 0, RECEIVER, f"{broken}EOFException"),
        (2, 0, XCEIVER, f"{failed}EOFException"),
        (2, 1, RESPONDER, f"PacketResponder 0 for block {block.name} Interrupted."),
        (2, 1, RESPONDER, f"PacketResponder 0 for block {block.name} terminating"),
    )
    for hop, responder, source, message in ways:
        life.on(block.pipeline[hop], time, block.threads[hop] + responder, source, message)


def _resume(life: Lifecycle, time: float) -> None:
    """The client rebuilds the pipeline without the first node."""
    block = life.block
    block.pipeline, block.threads = block.pipeline[1:], []
    arrived = life.draw.randrange(1 << 16, 1 << 21, 1 << 16)
    for hop, node in enumerate(block.pipeline):
        thread = life.cluster.thread(node, time)
        block.threads.append(thread)
        life.receiving(life.source(hop), node, time, thread)
        moved = f"from 0 to {arrived} meta file offset to {arrived // 128 + 7}"
        message = f"Changing block file offset of block {block.name} {moved}"
        life.on(node, time + life.soon(0.5), thread, RECEIVER, message)
