"""fl/node.py: a site's node against Flower's own Fleet API in this process, by TLS and with node authentication."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.server.app import _run_fleet_api_grpc_rere
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from fl.errors import LinkLost, LinkRefused
from fl.node import CALLS, Node, read_site_key
from storage.certificates import CA, SITE_KEY, issue, registered_sites


@dataclass
class Fleet:
    """A SuperLink's Fleet API with one run under way, and what a node tells before it sends."""

    port: int
    certs: Path
    state: Any
    store: Any
    run: int
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    def node(self, name: str, authority: Path | None = None) -> Node:
        place = self.certs / "sites" / name
        audit = lambda call, data: self.sent.append((call, data))  # noqa: E731
        return Node(f"127.0.0.1:{self.port}", authority or place / CA, place / SITE_KEY, audit)

    def ask(self, node_id: int, content: RecordDict) -> Message:
        """Leave a message for a node, as a server app does."""
        message = Message(content, dst_node_id=node_id, message_type="query.rules")
        metadata = message.metadata.__dict__
        metadata |= {"_run_id": self.run, "_src_node_id": SUPERLINK_NODE_ID}
        metadata["_message_id"] = message.object_id
        self.store.preregister(self.run, get_object_tree(message))
        for name, part in get_all_nested_objects(message).items():
            self.store.put(name, part.deflate())
        assert self.state.store_message_ins(remove_content_from_message(message))
        return message

    def answer(self, asked: Message) -> Message:
        """The reply to a message, put together from what the node has sent."""
        [head] = self.state.get_message_res({asked.metadata.message_id})
        tree = self.store.get_object_tree(head.metadata.message_id)
        names = _names(tree)
        reply = inflate_object_from_contents(tree.object_id, {name: self.store.get(name) for name in names})
        assert isinstance(reply, Message)
        return reply


def _names(tree: Any) -> set[str]:  # noqa: ANN401
    return {tree.object_id, *(name for child in tree.children for name in _names(child))}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    certs = tmp_path / "certs"
    issue(certs, ["north", "south"])
    manager = NoOpFederationManager(simulation=False)
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, manager, objects)
    state = states.state()
    files = tuple((certs / "link" / name).read_bytes() for name in ("ca.crt", "server.crt", "server.key"))
    server = _run_fleet_api_grpc_rere("127.0.0.1:0", states, objects, True, files, [NodeAuthServerInterceptor(states)])
    run = state.create_run("a/b", "1", "0", {}, NOOP_FEDERATION, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    assert state.claim_task(task)
    assert state.activate_task(task)
    yield Fleet(int(server.bound_address.rpartition(":")[2]), certs, state, objects.store(), run)
    server.stop(0)


def _register(fleet: Fleet, name: str) -> int:
    [site] = [site for site in registered_sites(fleet.certs / "link") if site.name == name]
    return int(fleet.state.create_node(NOOP_FLWR_AID, "none", site.public_pem, 30))


def test_a_site_with_an_unknown_key_is_refused_and_one_that_is_registered_let_in(fleet: Fleet) -> None:
    node = fleet.node("north")
    with pytest.raises(LinkRefused, match="The link does not know this site's key"):
        node.activate()
    number = _register(fleet, "north")
    assert node.activate() == number
    node.deactivate()
    node.close()


def test_a_link_with_another_authoritys_certificate_is_not_spoken_to(fleet: Fleet, tmp_path: Path) -> None:
    issue(tmp_path / "other", ["north"])
    _register(fleet, "north")
    node = fleet.node("north", tmp_path / "other" / "sites" / "north" / CA)
    with pytest.raises((LinkRefused, LinkLost), match=r"certificate|CERTIFICATE|handshake|reached"):
        node.activate()
    assert fleet.state.get_nodes(fleet.run) == set()
    node.close()


def test_a_node_cannot_speak_for_another_with_its_own_key(fleet: Fleet) -> None:
    theirs = _register(fleet, "south")
    _register(fleet, "north")
    node = fleet.node("north")
    node.activate()
    node._node.node_id = theirs
    with pytest.raises(LinkRefused, match="The link does not know this connection"):
        node.receive()
    node.close()


def test_a_message_arrives_whole_and_its_reply_too_and_all_that_is_sent_is_told_before(fleet: Fleet) -> None:
    number = _register(fleet, "north")
    node = fleet.node("north")
    node.activate()
    assert node.receive() is None
    weights = np.arange(3_000_000, dtype=np.float32)  # several chunks
    asked = fleet.ask(number, RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "c": ConfigRecord({"x": 1})}))
    message = node.receive()
    assert message is not None
    assert np.array_equal(message.content["arrays"]["w"].numpy(), weights)
    assert dict(message.content["c"]) == {"x": 1}
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights + 1)}), "metrics": MetricRecord({"loss": 0.5})})
    node.reply(Message(content, reply_to=message), 1.5)
    reply = fleet.answer(asked)
    assert np.array_equal(reply.content["arrays"]["w"].numpy(), weights + 1)
    assert dict(reply.content["metrics"]) == {"loss": 0.5}
    node.deactivate()
    node.close()
    told = {call for call, _ in fleet.sent}
    assert told <= set(CALLS)
    assert {"ActivateNode", "PullMessages", "PushMessages", "PushObject", "DeactivateNode"} <= told
    assert sum(len(data) for call, data in fleet.sent if call == "PushObject") > weights.nbytes
    assert len({hashlib.sha256(data).digest() for call, data in fleet.sent if call == "PushObject"}) > 2


def test_a_request_that_the_ledger_refuses_is_not_sent(fleet: Fleet) -> None:
    _register(fleet, "north")
    place = fleet.certs / "sites" / "north"

    def refuse(call: str, data: bytes) -> None:
        raise RuntimeError("the disk is full")

    node = Node(f"127.0.0.1:{fleet.port}", place / CA, place / SITE_KEY, refuse)
    with pytest.raises(RuntimeError, match="the disk is full"):
        node.activate()
    assert fleet.state.get_nodes(fleet.run) == set()
    node.close()


def test_a_node_knows_no_call_for_bundles(fleet: Fleet) -> None:
    node = fleet.node("north")
    with pytest.raises(LinkRefused, match="no call GetFab"):
        node._fleet.call("GetFab", GetFabRequest(hash_str="0"))
    assert fleet.sent == []
    node.close()


def test_a_site_that_left_is_gone_at_once_and_may_come_again(fleet: Fleet) -> None:
    number = _register(fleet, "north")
    node = fleet.node("north")
    for _ in range(2):
        node.activate()
        assert fleet.state.get_nodes(fleet.run) == {number}
        node.deactivate()
        assert fleet.state.get_nodes(fleet.run) == set()
    started = time.monotonic()
    node.close()
    assert time.monotonic() - started < 5


def test_a_private_key_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LinkRefused, match="atalaia certs"):
        read_site_key(tmp_path / "site.key")
    (tmp_path / "site.key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(LinkRefused, match="atalaia certs"):
        read_site_key(tmp_path / "site.key")
