"""A site's end of a federation: Flower's Fleet API, spoken by one process that runs only the code installed beside it.

Flower's SuperNode (1.32.1, supernode/start_client_internal.py) fetches the run's app bundle with the first message and
has a child process import the client app from it; `--trusted-entities` only demands a signature that Flower's app hub
gives. This node speaks to the same SuperLink and does less: it opens no port, and never asks for a bundle, so that no
code can come to it. Every request goes through `_AuditedFleet`, which tells it to the ledger before it is sent and lets
through only the calls that are listed there.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.supercore.grpc import create_channel
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fl.errors import LinkLost, LinkRefused

Audit = Callable[[str, bytes], None]
"""Takes each call's name and the bytes of its request, before they are sent."""
CALLS = (
    "ActivateNode",
    "DeactivateNode",
    "SendNodeHeartbeat",
    "PullMessages",
    "PullObject",
    "ConfirmMessageReceived",
    "PushMessages",
    "PushObject",
)
"""The calls that a site makes; GetFab, by which a bundle would be fetched, is none of them."""
HEARTBEAT_SECONDS = 10.0
"""The least that Flower takes; after twice as long in silence the link counts the site as gone."""
_TIMEOUT = 60.0
"""Seconds for one call; the largest carries one array."""
_PATIENCE = 120.0
"""Seconds for which a call is tried again while the link cannot be reached."""
_LONGEST_PAUSE = 5.0
_BUSY = ("Concurrent RPC limit exceeded", "calls a second")
"""How gRPC, and the link's guard, say that it is too much for now."""
_WORDS = {
    "Invalid timestamp": "The clocks of this machine and of the link differ by over five minutes; set the wrong one.",
    "Invalid node ID": "The link does not know this connection: it was started anew, or took the site for gone.",
    "No SuperNode found with the given public key": "The link does not know this site's key; whoever runs it adds "
    "the key by atalaia certs FOLDER --key NAME=FILE and starts the link again.",
}
"""What Flower's refusals mean, by how they begin."""


class _AuditedFleet:
    """The calls of a site, each told before it is sent; a link that cannot be reached is tried again for a while."""

    def __init__(self, channel: grpc.Channel, audit: Audit) -> None:
        stub = FleetStub(channel)
        self._calls = {name: getattr(stub, name) for name in CALLS}
        self._audit = audit
        self.stopped = threading.Event()

    def call(self, name: str, request: Any, patience: float = _PATIENCE) -> Any:  # noqa: ANN401 (a protobuf message)
        """The link's answer. Raises LinkRefused where it says no, LinkLost where it cannot be reached."""
        if name not in self._calls:
            raise LinkRefused(f"A site makes no call {name}.")
        deadline, pause = time.monotonic() + patience, 0.5
        while True:
            self._audit(name, request.SerializeToString())
            try:
                return self._calls[name](request, timeout=_TIMEOUT)
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
                busy = code is grpc.StatusCode.RESOURCE_EXHAUSTED and any(words in details for words in _BUSY)
                if not busy and code not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    known = [words for start, words in _WORDS.items() if details.startswith(start)]
                    told = known[0] if known else f"The link refuses {name}: {details.rstrip('.') or code.name}."
                    raise LinkRefused(told) from error
                if "handshake failed" in details.lower() or "certificate" in details.lower():
                    raise LinkRefused(f"The link's certificate is not of this federation: {details[:200]}.") from error
                if time.monotonic() + pause > deadline or self.stopped.wait(pause):
                    reason = shorten(details, 160, placeholder=" ...")
                    raise LinkLost(f"The link cannot be reached ({reason}).") from error
                pause = min(2 * pause, _LONGEST_PAUSE)


class Node:
    """One connection of a site to its link, by TLS and with the site's key."""

    def __init__(self, address: str, authority: Path, key: Path, audit: Audit) -> None:
        """`address` is HOST:PORT. Raises LinkRefused where the key cannot be read."""
        private = read_site_key(key)
        self._public = public_key_to_bytes(private.public_key())
        self._channel = create_channel(
            server_address=address,
            insecure=False,
            root_certificates=authority.read_bytes(),
            interceptors=[
                RuntimeVersionClientInterceptor(component_name="SuperNode"),
                NodeAuthClientInterceptor(private, private.public_key()),
            ],
        )
        self._fleet = _AuditedFleet(self._channel, audit)
        self._node = NodeProto()
        self._heart: threading.Thread | None = None

    def activate(self) -> int:
        """Tell the link that this site is here, and go on telling it; the node's number at the link."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        self._node = NodeProto(node_id=self._fleet.call("ActivateNode", request, 0.0).node_id)
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return int(self._node.node_id)

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
        while not self._fleet.stopped.wait(HEARTBEAT_SECONDS / 2):
            try:
                self._fleet.call("SendNodeHeartbeat", request, 0.0)
            except LinkLost:
                continue
            except LinkRefused:
                return  # the main thread's next call is refused as well, and tells it

    def receive(self) -> Message | None:
        """The next message for this site with all its contents; None where there is none now."""
        answer = self._fleet.call("PullMessages", PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        run, tree = answer.messages_list[0].metadata.run_id, answer.message_object_trees[0]
        message: Message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(lambda request: self._fleet.call("PullObject", request), self._node, run),
            make_confirm_message_received_fn_protobuf(
                lambda request: self._fleet.call("ConfirmMessageReceived", request), self._node, run
            ),
            return_type=Message,
        )
        # As Flower's own runtime does: an object does not contain its own id.
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def reply(self, message: Message, seconds: float) -> None:
        """Send a reply, which took so long to make."""
        run = message.metadata.run_id
        message.metadata.__dict__["_message_id"] = message.object_id
        head = message_to_proto(remove_content_from_message(message))
        with no_object_id_recompute():
            tree, objects = get_object_tree(message), get_all_nested_objects(message)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[head],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            wanted = set(self._fleet.call("PushMessages", request).objects_to_push)
            push = make_push_object_fn_protobuf(lambda each: self._fleet.call("PushObject", each), self._node, run)
            push_objects(objects, push, object_ids_to_push=wanted)

    def deactivate(self) -> None:
        """Tell the link that this site goes, so that nobody waits for it."""
        self._rest()
        if not self._node.node_id:
            return
        self._fleet.call("DeactivateNode", DeactivateNodeRequest(node_id=self._node.node_id), 0.0)
        self._node = NodeProto()

    def close(self) -> None:
        """End the heartbeats and the connection; without `deactivate` the link takes 20 seconds to notice."""
        self._rest()
        self._channel.close()

    def _rest(self) -> None:
        self._fleet.stopped.set()
        if self._heart is not None:
            self._heart.join(timeout=_LONGEST_PAUSE)
            self._heart = None
        self._fleet.stopped.clear()


def read_site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's private key; raises LinkRefused where it is none on a NIST curve in OpenSSH form."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LinkRefused(f"Cannot read the site's private key {path}; make it by atalaia certs.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise LinkRefused(f"{path} is on no NIST curve; make the site's key by atalaia certs.")
    return key
