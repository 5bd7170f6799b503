"""What a registered site may ask of the link, and how much: Flower's SuperLink with a guard before its Fleet API.

Flower's Fleet API (1.32.1) knows by a request's signature whose it is, and then believes what stands in it. Whoever has
a key may activate another site's node or have a message thrown away whose hash it knows. A reply's parts are stored
without limit, before anybody looks whether one was asked for, and under any metadata. A reply is handed to the server
app as soon as it is announced: one whose parts never come holds up a round for more than an hour (500 tries of up to
10 s, supercore/inflatable/inflatable_utils.py), and one that does not fit together ends the run with an exception.

The guard stands between the signature's check and Flower's handlers. It lets through only what a site needs, and keeps
a reply's parts to itself until the reply is whole; so a site that loses its power while it sends has sent nothing. What
the link holds of one site's replies is bounded: one that is not whole, and the last four that are.

`python -m fl.link_guard --sites FOLDER --run-folder FOLDER [options of flower-superlink]` starts it.
"""

import argparse
import json
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Array, Message, RecordDict
from flwr.common.constant import PUBLIC_KEY_HEADER
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.server import app as superlink
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_id,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.supercore.utils import get_metadata_bytes

from fl.node import CALLS, HEARTBEAT_SECONDS
from storage.certificates import registered_sites
from storage.events import append_event

Tell = Callable[[str, str, int], None]
"""Takes a site's name, why something of it was denied, and how many times since it was told last."""
Handle = Callable[[Any, Any], Any]
"""A handler of Flower: takes a request and its context, gives the answer."""
_FLEET = "/flwr.proto.Fleet/"
_TOLD_SECONDS = 60.0
_MESSAGES = 64
"""The guard remembers so many messages of those that a site was given last."""
_UNREAD = 4
"""Whole replies of a site that the server app has not fetched; it asks for one at a time, and may give up on some."""
_BEATS = ("ActivateNode", "SendNodeHeartbeat")
_SAME = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "message_type", "created_at", "ttl")
"""What a reply's head and its own parts must say alike: Flower goes by the first, the server app sees the second."""


@dataclass(frozen=True)
class Limits:
    """What one site may ask for."""

    request_bytes: int = 8 * 2**20
    """Of one request; Flower cuts arrays into pieces of 5 MiB."""
    reply_bytes: int = 64 * 2**20
    """Of a reply: of its parts, and of the arrays that they make."""
    reply_parts: int = 10_000
    """Of a reply; an adapter of SmolLM2-1.7B has 674."""
    calls_per_second: float = 100.0
    """Calls over a long time; a waiting site makes about two a second."""
    calls_at_once: int = 20_000
    """Calls in addition to those, to send and fetch an adapter in many parts as fast as it goes."""


class Denied(Exception):
    """A call is not let through; the text is why."""

    def __init__(self, reason: str, *, exhausted: bool = False) -> None:
        super().__init__(reason)
        self.code = grpc.StatusCode.RESOURCE_EXHAUSTED if exhausted else grpc.StatusCode.PERMISSION_DENIED


@dataclass
class _Given:
    """A message that a site was given."""

    run: int
    parts: frozenset[str]
    answered: frozenset[str] = frozenset()
    """The parts of the reply that came whole, and so is passed on; none before."""


@dataclass
class _Reply:
    """A reply that is not whole yet."""

    announced: PushMessagesRequest
    given: _Given
    parts: frozenset[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0

    @property
    def missing(self) -> list[str]:
        """The parts that have not come."""
        return sorted(self.parts - self.contents.keys())

    def add(self, request: PushObjectRequest, most: int) -> bool:
        """Keep a part; whether the reply is whole. Raises Denied where it is none."""
        if request.object_id in self.contents:
            return False
        content = request.object_content
        if self.size + len(content) > most:
            raise Denied(f"its reply has more than {most:,} bytes")
        if get_object_id(content) != request.object_id:
            raise Denied("it sends a part under another hash than it has")
        try:
            validate_object_content(content)
        except UnexpectedObjectContentError as error:
            raise Denied("it sends a part that is none of Flower's kinds") from error
        self.contents[request.object_id] = content
        self.size += len(content)
        return len(self.contents) == len(self.parts)

    def check(self, most: int) -> None:
        """Raise Denied where the parts make no reply, a larger one, or one that says other things than its head."""
        head = self.announced.messages_list[0]
        try:
            sizes = [self._array_bytes(name) for name in self.parts]
        except Exception as error:  # whatever Flower's readers raise on bytes of somebody else's making
            raise Denied("it sends parts that make no reply") from error
        if sum(sizes) > most:  # an array may name the same piece again and again
            raise Denied(f"its reply has more than {most:,} bytes")
        for part in iterate_object_tree(self.announced.message_object_trees[0]):
            # Flower walks along what was announced first: other children could send it round for ever.
            _, inside, _ = get_object_head_values_from_object_content(self.contents[part.object_id])
            if [child.object_id for child in part.children] != inside:
                raise Denied("it announces other parts than those of its reply")
        try:
            message = inflate_object_from_contents(head.metadata.message_id, dict(self.contents))
        except Exception as error:
            raise Denied("it sends parts that make no reply") from error
        if not isinstance(message, Message) or not (message.has_error() or isinstance(message.content, RecordDict)):
            raise Denied("it sends parts that make no reply")
        if wrong := [name for name in _SAME if getattr(message.metadata, name) != getattr(head.metadata, name)]:
            raise Denied(f"its reply has another {wrong[0]} inside than outside")
        if message.has_error() != head.HasField("error"):
            raise Denied("its reply is an error either inside or outside")

    def _array_bytes(self, name: str) -> int:
        """How large an array is that a part describes; 0 for other parts."""
        kind, pieces, _ = get_object_head_values_from_object_content(self.contents[name])
        if kind != Array.__qualname__:
            return 0
        described = json.loads(get_object_body(self.contents[name], Array))
        return sum(len(self.contents[pieces[number]]) for number in described["arraychunk_ids"])


class Account:
    """What one site was given and has sent."""

    def __init__(self, name: str, key: bytes, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._key, self._limits, self._clock = key, limits, clock
        self._lock = threading.Lock()
        self._given: OrderedDict[str, _Given] = OrderedDict()
        self._reply: _Reply | None = None
        self._unread: list[str] = []
        self._calls, self._counted = float(limits.calls_at_once), clock()
        self._denied: dict[str, tuple[int, float]] = {}

    def check(self, call: str, request: Any) -> None:  # noqa: ANN401 (a protobuf message)
        """Raise Denied for a call that this site may not make now."""
        with self._lock:
            self._count_call()
            if call == "ActivateNode" and request.public_key != self._key:
                raise Denied("it signs in as another site")
            if call in _BEATS and request.heartbeat_interval != HEARTBEAT_SECONDS:
                raise Denied("it gives signs of life at another interval than sites do")
            if call == "PullObject" and self._holding(request.object_id) is None:
                raise Denied("it asks for parts of messages that were not given to it")
            if call == "ConfirmMessageReceived" and request.message_object_id not in self._given:
                raise Denied("it confirms, and so removes, a message that was not given to it")

    def note(self, answer: PullMessagesResponse) -> None:
        """Remember what the link has given."""
        with self._lock:
            for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                parts = frozenset(part.object_id for part in iterate_object_tree(tree))
                self._given[message.metadata.message_id] = _Given(message.metadata.run_id, parts)
            while len(self._given) > _MESSAGES:
                self._given.popitem(last=False)

    def announce(self, request: PushMessagesRequest) -> list[str]:
        """Begin a reply, in the place of one that never became whole; the parts that are wanted. Raises Denied."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Denied("it sends other than one reply at a time")
        if request.messages_list[0].content.ByteSize():
            raise Denied("it sends content with the head of a reply")
        head, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        if head.src_node_id != request.node.node_id:
            raise Denied("it replies in another site's name")
        if tree.object_id != head.message_id:
            raise Denied("it announces other parts than those of its reply")
        most = self._limits.reply_parts
        nodes = [part.object_id for part in islice(iterate_object_tree(tree), most + 1)]
        if len(nodes) > most:
            raise Denied(f"its reply has more than {most:,} parts", exhausted=True)
        parts = frozenset(nodes)
        with self._lock:
            given = self._given.get(head.reply_to_message_id)
            if given is None or given.run != head.run_id:
                raise Denied("it replies to a message that was not given to it")
            if given.answered:
                if parts != given.answered:
                    raise Denied("it replies a second time, and otherwise")
                return []  # it did not hear that all had come
            begun = self._reply
            if begun is None or begun.announced != request:
                self._reply = begun = _Reply(request, given, parts)
            return begun.missing

    def add_part(self, request: PushObjectRequest) -> _Reply | None:
        """Keep a part of the reply that was begun; the reply if that makes it whole. Raises Denied."""
        most = self._limits.reply_bytes
        with self._lock:
            reply = self._reply
            if reply is None or request.object_id not in reply.parts:
                if not any(request.object_id in given.answered for given in self._given.values()):
                    raise Denied("it sends parts that no reply of its has")
                return None
            if not reply.add(request, most):
                return None
            self._reply = None
            # Before it is looked at and passed on: announced again meanwhile, it would be passed on twice.
            reply.given.answered = reply.parts
        try:
            reply.check(most)
        except Denied:
            self.reopen(reply)
            raise
        return reply

    def reopen(self, reply: _Reply) -> None:
        """Let a message be answered again whose reply was none, or was not taken."""
        with self._lock:
            reply.given.answered = frozenset()

    def passed(self, reply: _Reply) -> list[str]:
        """Note that a reply was passed on; those before it that the server app had time enough to fetch."""
        with self._lock:
            self._unread.append(reply.announced.messages_list[0].metadata.message_id)
            old, self._unread = self._unread[:-_UNREAD], self._unread[-_UNREAD:]
            return old

    def denied(self, reason: str) -> int:
        """Count a denial; how many to tell of now, 0 where one of this kind was told just before."""
        with self._lock:
            number, told = self._denied.get(reason, (0, -float("inf")))
            if self._clock() - told < _TOLD_SECONDS:
                self._denied[reason] = number + 1, told
                return 0
            self._denied[reason] = 0, self._clock()
            return number + 1

    def _count_call(self) -> None:
        now = self._clock()
        earned = (now - self._counted) * self._limits.calls_per_second
        self._calls, self._counted = min(self._limits.calls_at_once, self._calls + earned), now
        if self._calls < 1:
            raise Denied(f"more than {self._limits.calls_per_second:g} calls a second", exhausted=True)
        self._calls -= 1

    def _holding(self, part: str) -> _Given | None:
        """The newest message with a part."""
        return next((given for given in reversed(self._given.values()) if part in given.parts), None)


class Guard(grpc.ServerInterceptor):
    """Denies what a site has no need of; stands behind Flower's check of signatures, which knows whose a key is."""

    def __init__(self, keys: Mapping[bytes, str], tell: Tell, limits: Limits = Limits()) -> None:
        """`keys`: each registered site's public key (PEM) with its name."""
        self.limits = limits
        self._accounts = {key: Account(name, key, limits) for key, name in keys.items()}
        self._tell = tell
        self.fleet: Any = None
        """Flower's servicer, by which whole replies are passed on."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:  # noqa: ANN401
        """Let a call through to Flower's handler, or deny it."""
        handler = continuation(details)
        if handler is None:
            return None
        account = self._accounts.get(get_metadata_bytes(details.invocation_metadata, PUBLIC_KEY_HEADER) or b"")
        call = details.method.removeprefix(_FLEET)
        handle = _refuse if account is None else partial(self._guarded, account, call, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, account: Account, call: str, handle: Handle, request: Any, context: Any) -> Any:  # noqa: ANN401
        try:
            if call not in CALLS:
                raise Denied(f"a site has no need of {call}")
            account.check(call, request)
            if call == "PushMessages":
                return PushMessagesResponse(objects_to_push=account.announce(request))
            whole = account.add_part(request) if call == "PushObject" else None
        except Denied as denied:
            if number := account.denied(str(denied)):
                self._tell(account.name, str(denied), number)
            context.abort(denied.code, f"The link denies {call}: {denied}.")
        if call == "PushObject":
            if whole is not None:
                self._pass_on(account, whole, context)
            return PushObjectResponse(stored=True)
        answer = handle(request, context)
        if call == "PullMessages":
            account.note(answer)
        return answer

    def _pass_on(self, account: Account, reply: _Reply, context: Any) -> None:  # noqa: ANN401
        """Give a whole reply to Flower, the head first, as it wants it, and clear away what lies there for no one."""
        head, store = reply.announced.messages_list[0].metadata, self.fleet.objectstore_factory.store()
        try:
            answer = self.fleet.PushMessages(reply.announced, context)
        except BaseException:  # gRPC's own kind among them, where the run is over
            account.reopen(reply)
            raise
        if "None" in answer.results:  # it came too late, say
            store.delete(head.message_id)
        else:
            for name in answer.objects_to_push:
                part = PushObjectRequest(
                    node=reply.announced.node, run_id=head.run_id, object_id=name, object_content=reply.contents[name]
                )
                self.fleet.PushObject(part, context)
        for message in (*account.passed(reply), head.reply_to_message_id):
            store.delete(message)


def _refuse(request: Any, context: Any) -> None:  # noqa: ANN401
    """To a key that no site is registered by: Flower would let it sign in with another's public key."""
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "No SuperNode found with the given public key.")


def guarded(guard: Guard) -> Callable[..., Any]:
    """Flower's way to make a gRPC server, with the guard as the last of its interceptors."""
    create = superlink.generic_create_grpc_server

    def create_guarded(
        servicer_and_add_fn: tuple[Any, Any],
        *arguments: Any,  # noqa: ANN401
        interceptors: Iterable[Any] = (),
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        guard.fleet = servicer_and_add_fn[0]
        options["max_message_length"] = guard.limits.request_bytes
        return create(servicer_and_add_fn, *arguments, interceptors=[*interceptors, guard], **options)

    return create_guarded


def main() -> None:
    """Run flower-superlink with the guard."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--sites", type=Path, required=True, help="the link's folder of `atalaia certs`")
    parser.add_argument("--run-folder", type=Path, required=True, help="whose events tell what was denied")
    parser.add_argument("--reply-bytes", type=int, default=Limits().reply_bytes, help="the most that a reply may have")
    given, flowers = parser.parse_known_args()

    def tell(site: str, reason: str, number: int) -> None:
        append_event(given.run_folder, "denied", site=site, reason=reason, times=number)

    keys = {site.public_pem: site.name for site in registered_sites(given.sites)}
    guard = Guard(keys, tell, Limits(reply_bytes=given.reply_bytes))
    # Flower has no option for either; its own function for the Fleet API finds this one by its name.
    superlink.generic_create_grpc_server = guarded(guard)
    sys.argv = ["flower-superlink", *flowers]
    superlink.run_superlink()


if __name__ == "__main__":
    main()
