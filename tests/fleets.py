"""A link's Fleet API in this process, by TLS and with node authentication, as Flower starts it or guarded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server import app as superlink
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from fl.link_guard import Guard, Limits, guarded
from fl.node import Node
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
    told: list[tuple[str, str, int]] = field(default_factory=list)
    """What the guard has denied, if there is one."""

    def node(self, name: str, authority: Path | None = None) -> Node:
        place = self.certs / "sites" / name
        audit = lambda call, data: self.sent.append((call, data))  # noqa: E731
        return Node(f"127.0.0.1:{self.port}", authority or place / CA, place / SITE_KEY, audit)

    def register(self, name: str) -> int:
        """Let a site in by its key; its node's number."""
        [site] = [site for site in registered_sites(self.certs / "link") if site.name == name]
        return int(self.state.create_node(NOOP_FLWR_AID, "none", site.public_pem, 30))

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


@contextmanager
def running_fleet(folder: Path, limits: Limits | None) -> Iterator[Fleet]:
    """A Fleet API that knows the keys of north and south; `limits`: of its guard, None for Flower's alone."""
    certs = folder / "certs"
    issue(certs, ["north", "south"])
    manager = NoOpFederationManager(simulation=False)
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, manager, objects)
    state = states.state()
    told: list[tuple[str, str, int]] = []
    files = tuple((certs / "link" / name).read_bytes() for name in ("ca.crt", "server.crt", "server.key"))
    with pytest.MonkeyPatch.context() as patch:
        if limits is not None:
            keys = {site.public_pem: site.name for site in registered_sites(certs / "link")}
            guard = Guard(keys, lambda *denied: told.append(denied), limits)
            patch.setattr(superlink, "generic_create_grpc_server", guarded(guard))
        server = superlink._run_fleet_api_grpc_rere(
            "127.0.0.1:0", states, objects, True, files, [NodeAuthServerInterceptor(states)]
        )
    run = state.create_run("a/b", "1", "0", {}, NOOP_FEDERATION, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    assert state.claim_task(task)
    assert state.activate_task(task)
    yield Fleet(int(server.bound_address.rpartition(":")[2]), certs, state, objects.store(), run, told=told)
    server.stop(0)
