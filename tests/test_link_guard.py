"""fl/link_guard.py: what hostile sites do to Flower's own link, which the guarded one does not let them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fleets import Fleet, running_fleet
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from site_federations import tiny_rules

from fl.adapter import adapter_arrays, attach_adapter
from fl.errors import LinkRefused
from fl.link_guard import Account, Denied, Guard, Limits
from fl.model import load_model
from fl.node import HEARTBEAT_SECONDS, Node
from flows.link import _reply_bytes
from storage.certificates import CA, SITE_KEY, issue
from storage.layout import Layout

_SMALL = Limits(reply_bytes=200_000, reply_parts=50)


class Hostile:
    """A registered site that was given one message, with what it takes to send anything."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.number = fleet, fleet.register("north")
        self.other = fleet.register("south")
        self.node: Node = fleet.node("north")
        self.node.activate()
        self.asked = fleet.ask(self.number, RecordDict({"config": ConfigRecord({"rules": "none"})}))
        given = self.node.receive()
        assert given is not None
        self.given = given

    def reply(self, loss: float = 0.5, **metadata: Any) -> Message:  # noqa: ANN401
        """A reply to what it was given; `metadata` is written over its own."""
        reply = Message(RecordDict({"metrics": MetricRecord({"loss": loss})}), reply_to=self.given)
        reply.metadata.__dict__.update({f"_{name}": value for name, value in metadata.items()})
        return reply

    def announce(self, reply: Message, tree_of: Message | None = None, **head: Any) -> list[str]:  # noqa: ANN401
        """Push a reply's head alone; `head` is written over its metadata."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        proto = message_to_proto(remove_content_from_message(reply))
        for name, value in head.items():
            setattr(proto.metadata, name, value)
        request = PushMessagesRequest(
            node=self.node._node, messages_list=[proto], message_object_trees=[get_object_tree(tree_of or reply)]
        )
        return list(self.call("PushMessages", request).objects_to_push)

    def push(self, name: str, content: bytes) -> Any:  # noqa: ANN401
        """Push one part."""
        run = self.fleet.run
        return self.call(
            "PushObject",
            PushObjectRequest(node=self.node._node, run_id=run, object_id=name, object_content=content),
        )

    def push_all(self, reply: Message, *, but: int = 0) -> None:
        """Push all parts of a reply, but so many."""
        parts = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        for name in list(parts)[but:]:
            self.push(name, parts[name])

    def call(self, name: str, request: Any) -> Any:  # noqa: ANN401
        """Any call that a site makes."""
        return self.node._fleet.call(name, request, 0.0)

    @property
    def heard(self) -> list[Any]:
        """The heads of replies that the server app would be handed now."""
        return list(self.fleet.state.get_message_res({self.asked.metadata.message_id}))


@contextmanager
def _hostile(folder: Path, limits: Limits | None) -> Iterator[Hostile]:
    with running_fleet(folder, limits) as fleet:
        hostile = Hostile(fleet)
        yield hostile
        hostile.node.close()


@pytest.fixture
def at_flower(tmp_path: Path) -> Iterator[Hostile]:
    with _hostile(tmp_path / "flower", None) as hostile:
        yield hostile


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Hostile]:
    with _hostile(tmp_path / "guarded", _SMALL) as hostile:
        yield hostile


def _stored(hostile: Hostile) -> int:
    return len(hostile.fleet.store)


def test_a_reply_is_handed_on_when_it_is_whole_and_not_when_it_is_announced(
    at_flower: Hostile, guarded: Hostile
) -> None:
    at_flower.announce(at_flower.reply())
    assert at_flower.heard  # the server app would wait for its parts, for more than an hour
    reply, before = guarded.reply(0.25), _stored(guarded)
    guarded.announce(reply)
    guarded.push_all(reply, but=1)
    assert not guarded.heard
    assert _stored(guarded) == before
    guarded.push_all(reply)
    assert dict(guarded.fleet.answer(guarded.asked).content["metrics"]) == {"loss": 0.25}
    assert guarded.fleet.told == []


def test_a_reply_that_is_sent_again_while_it_is_passed_on_is_there_once_and_whole(
    guarded: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, pass_on = guarded.reply(0.25), Guard._pass_on
    wanted: list[list[str]] = []

    def slow(guard: Guard, *arguments: Any) -> None:  # noqa: ANN401
        """A link that is just passing on while the site sends all again."""
        monkeypatch.setattr(Guard, "_pass_on", pass_on)
        wanted.append(guarded.announce(reply))
        guarded.push_all(reply)
        pass_on(guard, *arguments)

    monkeypatch.setattr(Guard, "_pass_on", slow)
    guarded.announce(reply)
    guarded.push_all(reply)
    assert wanted == [[]]
    assert dict(guarded.fleet.answer(guarded.asked).content["metrics"]) == {"loss": 0.25}


def test_an_error_is_a_reply_too(guarded: Hostile) -> None:
    guarded.node.reply(Message(Error(code=7, reason="no windows"), reply_to=guarded.given), 0.1)
    found = guarded.fleet.answer(guarded.asked)
    assert (found.error.code, found.error.reason) == (7, "no windows")


def test_a_reply_after_one_that_broke_off_is_the_one_that_counts(guarded: Hostile) -> None:
    broken, whole = guarded.reply(1.0), guarded.reply(2.0)
    guarded.announce(broken)
    guarded.push_all(broken, but=1)
    guarded.announce(whole)
    guarded.push_all(whole)
    assert dict(guarded.fleet.answer(guarded.asked).content["metrics"]) == {"loss": 2.0}


def test_what_is_sent_again_because_the_answer_was_not_heard_is_taken_for_sent(guarded: Hostile) -> None:
    reply = guarded.reply()
    for _ in range(2):
        guarded.announce(reply)
        guarded.push_all(reply)
        guarded.push_all(reply)
    assert guarded.fleet.answer(guarded.asked).content["metrics"]["loss"] == 0.5
    assert guarded.fleet.told == []
    with pytest.raises(LinkRefused, match="replies a second time, and otherwise"):
        guarded.announce(guarded.reply(7.0))


def test_parts_that_nobody_asked_for_are_stored_by_flower_and_not_by_the_guarded_link(
    at_flower: Hostile, guarded: Hostile
) -> None:
    for hostile in (at_flower, guarded):
        before = _stored(hostile)
        for number in range(5):
            reply = hostile.reply(float(number), reply_to_message_id=f"{number:064x}")
            if hostile is at_flower:
                hostile.announce(reply)
                hostile.push_all(reply)
            else:
                with pytest.raises(LinkRefused, match="replies to a message that was not given to it"):
                    hostile.announce(reply)
                with pytest.raises(LinkRefused, match="sends parts that no reply of its has"):
                    hostile.push_all(reply)
        assert _stored(hostile) - before == (15 if hostile is at_flower else 0)


def test_a_reply_in_another_sites_name_passes_flower_and_not_the_guarded_link(
    at_flower: Hostile, guarded: Hostile
) -> None:
    forged = at_flower.reply(src_node_id=at_flower.other)
    at_flower.announce(forged, src_node_id=at_flower.number)
    at_flower.push_all(forged)
    # What the server app knows the site by.
    assert at_flower.fleet.answer(at_flower.asked).metadata.src_node_id == at_flower.other
    forged = guarded.reply(src_node_id=guarded.other)
    guarded.announce(forged, src_node_id=guarded.number)
    with pytest.raises(LinkRefused, match="its reply has another src_node_id inside than outside"):
        guarded.push_all(forged)
    with pytest.raises(LinkRefused, match="replies in another site's name"):
        guarded.announce(guarded.reply(src_node_id=guarded.other))
    with pytest.raises(LinkRefused, match="announces other parts than those of its reply"):
        guarded.announce(guarded.reply(), tree_of=guarded.reply(3.0))
    assert not guarded.heard


def test_parts_that_make_no_reply_end_the_server_apps_run_with_flower_and_are_denied(
    at_flower: Hostile, guarded: Hostile
) -> None:
    for hostile in (at_flower, guarded):
        # A reply that says it has neither content nor error.
        empty = hostile.reply()
        empty.metadata.__dict__["_message_id"] = ""
        body = message_to_proto(remove_content_from_message(empty)).SerializeToString()
        content = b"Message  %d\x00" % len(body) + body
        tree = get_object_tree(empty)
        del tree.children[:]
        tree.object_id = get_object_id(content)
        proto = message_to_proto(remove_content_from_message(empty))
        proto.metadata.message_id = tree.object_id
        request = PushMessagesRequest(node=hostile.node._node, messages_list=[proto], message_object_trees=[tree])
        hostile.call("PushMessages", request)
        if hostile is at_flower:
            hostile.push(tree.object_id, content)
            with pytest.raises(IndexError):
                hostile.fleet.answer(hostile.asked)
        else:
            with pytest.raises(LinkRefused, match="sends parts that make no reply"):
                hostile.push(tree.object_id, content)
            assert not hostile.heard


def test_a_tree_that_is_not_that_of_the_parts_is_denied(guarded: Hostile) -> None:
    reply = guarded.reply()
    name = reply.object_id
    proto = message_to_proto(remove_content_from_message(reply))
    proto.metadata.message_id = name

    def announce(tree: ObjectTree) -> Any:  # noqa: ANN401
        request = PushMessagesRequest(node=guarded.node._node, messages_list=[proto], message_object_trees=[tree])
        return guarded.call("PushMessages", request)

    # Each part stands twice below the one before: little to announce, and 2^40 ways for who walks along it.
    tree = get_object_tree(reply)
    announce(ObjectTree(object_id=name, children=[*tree.children, *tree.children]))
    with pytest.raises(LinkRefused, match="announces other parts than those of its reply"):
        guarded.push_all(reply)
    # A part beyond those that are counted would be waited for, and never come.
    hidden = ObjectTree(object_id="f" * 64)
    with pytest.raises(LinkRefused, match="more than 50 parts"):
        announce(ObjectTree(object_id=name, children=[*[tree.children[0]] * 60, hidden]))
    assert not guarded.heard


def test_a_reply_for_another_run_is_denied(guarded: Hostile) -> None:
    with pytest.raises(LinkRefused, match="replies to a message that was not given to it"):
        guarded.announce(guarded.reply(run_id=guarded.fleet.run + 1))


def test_parts_of_another_hash_or_of_no_kind_are_denied(guarded: Hostile) -> None:
    reply = guarded.reply()
    wanted = guarded.announce(reply)
    assert sorted(wanted) == sorted(get_all_nested_objects(reply))
    with pytest.raises(LinkRefused, match="a part under another hash than it has"):
        guarded.push(wanted[0], b"something else")
    tree, content = get_object_tree(reply), b"something else"
    tree.children[0].object_id = get_object_id(content)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    proto = message_to_proto(remove_content_from_message(reply))
    guarded.call(
        "PushMessages",
        PushMessagesRequest(node=guarded.node._node, messages_list=[proto], message_object_trees=[tree]),
    )
    with pytest.raises(LinkRefused, match="a part that is none of Flower's kinds"):
        guarded.push(get_object_id(content), content)


def test_a_reply_beyond_the_limits_is_denied_and_its_site_may_send_another(guarded: Hostile) -> None:
    large = Message(RecordDict({"a": ArrayRecord({"w": Array(np.zeros(60_000, np.float32))})}), reply_to=guarded.given)
    guarded.announce(large)
    with pytest.raises(LinkRefused, match="its reply has more than"):
        guarded.push_all(large)
    many = {str(number): Array(np.full(3, number, np.float32)) for number in range(30)}
    with pytest.raises(LinkRefused, match="its reply has more than 50 parts"):
        guarded.announce(Message(RecordDict({"a": ArrayRecord(many)}), reply_to=guarded.given))
    assert not guarded.heard
    reply = guarded.reply()
    guarded.announce(reply)
    guarded.push_all(reply)
    assert guarded.heard


def test_an_array_that_names_one_piece_again_and_again_is_not_put_together(guarded: Hostile) -> None:
    reply = Message(RecordDict({"a": ArrayRecord({"w": Array(np.zeros(1000, np.float32))})}), reply_to=guarded.given)
    array = reply.content["a"]["w"]
    [piece] = array.children
    body = json.dumps({"dtype": "float32", "shape": [1000], "stype": array.stype, "arraychunk_ids": [0] * 1000})
    bomb = _part("Array", [piece], body.encode())
    record = _part("ArrayRecord", [get_object_id(bomb)], json.dumps({"w": get_object_id(bomb)}).encode())
    content = _part("RecordDict", [get_object_id(record)], json.dumps({"a": get_object_id(record)}).encode())
    proto = message_to_proto(remove_content_from_message(reply))
    head = _part("Message", [get_object_id(content)], proto.SerializeToString())
    parts = {get_object_id(each): each for each in (array.children[piece].deflate(), bomb, record, content, head)}
    tree = ObjectTree(object_id=piece)
    for each in (bomb, record, content, head):
        tree = ObjectTree(object_id=get_object_id(each), children=[tree])
    proto.metadata.message_id = tree.object_id
    request = PushMessagesRequest(node=guarded.node._node, messages_list=[proto], message_object_trees=[tree])
    assert set(guarded.call("PushMessages", request).objects_to_push) == set(parts)
    with pytest.raises(LinkRefused, match="its reply has more than 200,000 bytes"):
        for name, each in parts.items():
            guarded.push(name, each)
    assert not guarded.heard


def _part(kind: str, children: list[str], body: bytes) -> bytes:
    """A part as Flower writes it."""
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def test_the_link_keeps_the_last_four_replies_that_nobody_has_fetched(guarded: Hostile) -> None:
    stored = []
    for number in range(8):
        guarded.asked = guarded.fleet.ask(guarded.number, RecordDict({"c": ConfigRecord({"x": number})}))
        given = guarded.node.receive()
        assert given is not None
        guarded.given = given
        reply = guarded.reply(float(number))
        guarded.announce(reply)
        guarded.push_all(reply)
        stored.append(reply.object_id)
    assert [name in guarded.fleet.store for name in stored] == [False] * 4 + [True] * 4
    assert dict(guarded.fleet.answer(guarded.asked).content["metrics"]) == {"loss": 7.0}


def test_a_message_that_was_answered_is_not_kept_even_if_its_receipt_was_never_confirmed(guarded: Hostile) -> None:
    asked = guarded.fleet.ask(guarded.number, RecordDict({"c": ConfigRecord({"x": 1})}))
    given = guarded.call("PullMessages", PullMessagesRequest(node=guarded.node._node))
    assert given.messages_list[0].metadata.message_id == asked.metadata.message_id
    guarded.asked = guarded.given = asked
    reply = guarded.reply(src_node_id=guarded.number, dst_node_id=asked.metadata.src_node_id)
    guarded.announce(reply)
    guarded.push_all(reply)
    assert guarded.heard
    assert asked.metadata.message_id not in guarded.fleet.store


def test_a_reply_that_is_too_old_is_not_kept(guarded: Hostile) -> None:
    before = _stored(guarded)
    reply = guarded.reply(created_at=1.8e9, ttl=1e12)
    guarded.announce(reply)
    guarded.push_all(reply)
    assert not guarded.heard
    assert _stored(guarded) == before


def test_a_head_with_content_or_of_an_error_that_the_reply_is_not_is_denied(guarded: Hostile) -> None:
    reply = guarded.reply()
    reply.metadata.__dict__["_message_id"] = reply.object_id
    request = PushMessagesRequest(
        node=guarded.node._node, messages_list=[message_to_proto(reply)], message_object_trees=[get_object_tree(reply)]
    )
    with pytest.raises(LinkRefused, match="content with the head of a reply"):
        guarded.call("PushMessages", request)
    request.messages_list[0].ClearField("content")
    request.messages_list[0].error.code = 1
    guarded.call("PushMessages", request)
    with pytest.raises(LinkRefused, match="its reply is an error either inside or outside"):
        guarded.push_all(reply)


def test_an_unknown_key_signs_no_site_in(at_flower: Hostile, guarded: Hostile, tmp_path: Path) -> None:
    issue(tmp_path, ["stranger"])
    for hostile in (at_flower, guarded):
        place = hostile.fleet.certs / "sites" / "south"
        stranger = Node(
            f"127.0.0.1:{hostile.fleet.port}", place / CA, tmp_path / "sites" / "stranger" / SITE_KEY, lambda *_: None
        )
        south = hostile.fleet.node("south")
        request = ActivateNodeRequest(public_key=south._public, heartbeat_interval=1800)
        if hostile is at_flower:
            stranger._fleet.call("ActivateNode", request, 0.0)
            with pytest.raises(LinkRefused):  # not even to itself it seems to be absent
                south.activate()
        else:
            with pytest.raises(LinkRefused, match="does not know this site's key"):
                stranger._fleet.call("ActivateNode", request, 0.0)
            south.activate()
        stranger.close()
        south.close()


def test_signs_of_life_are_given_at_the_usual_interval(guarded: Hostile) -> None:
    with pytest.raises(LinkRefused, match="at another interval than sites do"):
        guarded.call("SendNodeHeartbeat", SendNodeHeartbeatRequest(node=guarded.node._node, heartbeat_interval=1800))


def test_the_limit_of_replies_follows_from_the_federations_adapter(tiny_model: Path, tmp_path: Path) -> None:
    rules = tiny_rules(tiny_model, Layout(tmp_path / "home"))
    values = sum(
        array.size for array in adapter_arrays(attach_adapter(load_model(tiny_model), rules.tuning, 0)).values()
    )
    assert _reply_bytes(tiny_model, rules) == 8 * values + 8 * 2**20


def test_requests_of_many_megabytes_are_not_read(guarded: Hostile) -> None:
    wanted = guarded.announce(guarded.reply())
    with pytest.raises(LinkRefused, match="message larger than max"):
        guarded.push(wanted[0], bytes(_SMALL.request_bytes))


def test_another_site_is_not_signed_in_and_no_message_of_it_fetched_or_removed(
    at_flower: Hostile, guarded: Hostile
) -> None:
    for hostile in (at_flower, guarded):
        south = hostile.fleet.node("south")
        south.activate()
        theirs = hostile.fleet.ask(hostile.other, RecordDict({"config": ConfigRecord({"rules": "theirs"})}))
        name = theirs.metadata.message_id
        south.deactivate()
        south.close()
        requests = {
            "ActivateNode": ActivateNodeRequest(public_key=south._public, heartbeat_interval=HEARTBEAT_SECONDS),
            "PullObject": PullObjectRequest(node=hostile.node._node, run_id=hostile.fleet.run, object_id=name),
            "ConfirmMessageReceived": ConfirmMessageReceivedRequest(
                node=hostile.node._node, run_id=hostile.fleet.run, message_object_id=name
            ),
        }
        for call, request in requests.items():
            if hostile is at_flower:
                hostile.call(call, request)
            else:
                with pytest.raises(LinkRefused, match="The link denies"):
                    hostile.call(call, request)
        is_there = hostile is guarded
        assert (name in hostile.fleet.store) == is_there
        assert (hostile.other in hostile.fleet.state.get_nodes(hostile.fleet.run)) != is_there


def test_calls_that_no_site_makes_are_denied(guarded: Hostile) -> None:
    request = GetRunRequest(node=guarded.node._node, run_id=guarded.fleet.run)
    with pytest.raises(grpc.RpcError, match="a site has no need of GetRun"):
        FleetStub(guarded.node._channel).GetRun(request)


def test_denials_are_told_once_a_minute_with_their_number() -> None:
    now = [0.0]
    account = Account("north", b"key", Limits(), lambda: now[0])
    told = [account.denied("a flood") for _ in range(100)]
    assert (told[0], sum(told)) == (1, 1)
    assert account.denied("another") == 1
    now[0] = 61.0
    assert account.denied("a flood") == 100


def test_calls_faster_than_the_limit_are_denied_until_time_has_passed() -> None:
    now = [0.0]
    account = Account("north", b"key", Limits(calls_per_second=10, calls_at_once=50), lambda: now[0])

    def calls(number: int) -> int:
        """How many of so many calls are let through."""
        passed = 0
        for _ in range(number):
            try:
                account.check("PullMessages", None)
            except Denied as denied:
                assert denied.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            else:
                passed += 1
        return passed

    assert calls(1000) == 50
    now[0] += 2.0
    assert calls(1000) == 20
    now[0] += 1000.0
    assert calls(1000) == 50
