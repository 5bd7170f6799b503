"""fl/node.py: a site's node against Flower's own Fleet API in this process, alone and behind fl/link_guard.py."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fleets import Fleet, running_fleet
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.fab_pb2 import GetFabRequest

from fl.errors import LinkLost, LinkRefused
from fl.link_guard import Limits
from fl.node import CALLS, Node, read_site_key
from storage.certificates import CA, SITE_KEY, issue


@pytest.fixture(params=[None, Limits()], ids=["flower", "guarded"])
def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with running_fleet(tmp_path, request.param) as found:
        yield found


def test_a_site_with_an_unknown_key_is_refused_and_one_that_is_registered_let_in(fleet: Fleet) -> None:
    node = fleet.node("north")
    with pytest.raises(LinkRefused, match="The link does not know this site's key"):
        node.activate()
    number = fleet.register("north")
    assert node.activate() == number
    node.deactivate()
    node.close()


def test_a_link_with_another_authoritys_certificate_is_not_spoken_to(fleet: Fleet, tmp_path: Path) -> None:
    issue(tmp_path / "other", ["north"])
    fleet.register("north")
    node = fleet.node("north", tmp_path / "other" / "sites" / "north" / CA)
    with pytest.raises((LinkRefused, LinkLost), match=r"certificate|CERTIFICATE|handshake|reached"):
        node.activate()
    assert fleet.state.get_nodes(fleet.run) == set()
    node.close()


def test_a_node_cannot_speak_for_another_with_its_own_key(fleet: Fleet) -> None:
    theirs = fleet.register("south")
    fleet.register("north")
    node = fleet.node("north")
    node.activate()
    node._node.node_id = theirs
    with pytest.raises(LinkRefused, match="The link does not know this connection"):
        node.receive()
    node.close()


def test_a_message_arrives_whole_and_its_reply_too_and_all_that_is_sent_is_told_before(fleet: Fleet) -> None:
    number = fleet.register("north")
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
    fleet.register("north")
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
    number = fleet.register("north")
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
