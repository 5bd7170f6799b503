"""The client of a real site: the usual client's training behind rules that its operator agreed to.

A message that asks for anything else is refused, a reply holds what is declared and nothing more, and an error leaves
the site as one of a few fixed sentences: its own words might quote a log.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp

from fl import client_app
from fl.declared import ADAPTER, JUDGE, TRAIN, check_arrays, check_numbers
from fl.errors import FederationError
from fl.exchange import Arrays

_FAILED, _REFUSED = 101, 102
FAILED = "The site could not do this; its own screen says why."
REFUSED = "The site's operator has not agreed to these rules."


class NotAgreed(FederationError):
    """What is asked is not in the rules that the site's operator agreed to."""


class Member(Protocol):
    """A site: what it agreed to, where its windows lie, and how it judges itself."""

    def admit(self, rules: str, number: int) -> Mapping[str, float]:
        """Take part by these rules under this number, and prepare the windows; raises NotAgreed."""

    def expect(self, config: Mapping[str, Any]) -> None:
        """Raise NotAgreed where a request's configuration is not the one agreed to."""

    def node_config(self) -> dict[str, str | int]:
        """The client's settings, as fl/client_app.py reads them."""

    def judge(self, config: Mapping[str, Any], adapter: Arrays, *, last: bool) -> Mapping[str, float]:
        """How the adapter does on the site's own windows; with the last one also the alerts."""

    def finish(self) -> None:
        """The federation is over."""


def site_app(member: Member) -> ClientApp:
    """The client app of a site."""
    client = ClientApp()

    @client.query("rules")
    def admit(message: Message, context: Context) -> Message:
        config = message.content["config"]
        return _numbers(message, member.admit(str(config["rules"]), int(config["number"])))

    @client.query("adapter")
    def first(message: Message, context: Context) -> Message:
        member.expect(dict(message.content["config"]))
        return client_app.first_adapter(message, context)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        member.expect(dict(message.content["config"]))
        return client_app.train(message, context)

    @client.evaluate()
    def judge(message: Message, context: Context) -> Message:
        config = dict(message.content["config"])
        last = bool(config.pop("last"))
        member.expect(config)
        return _numbers(message, member.judge(config, arrays_of(message.content), last=last))

    @client.query("done")
    def finish(message: Message, context: Context) -> Message:
        member.finish()
        return Message(RecordDict(), reply_to=message)

    return client


def arrays_of(content: RecordDict) -> Arrays:
    """The arrays of a message by name; none where it has no record of them."""
    return {name: array.numpy() for name, array in content["arrays"].items()} if "arrays" in content else {}


def _numbers(message: Message, numbers: Mapping[str, float]) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(dict(numbers))}), reply_to=message)


@dataclass(frozen=True)
class Answer:
    """A reply, and what the site's own screen and ledger say of it."""

    message: Message
    seconds: float
    numbers: dict[str, float]
    array_bytes: int
    error: Exception | None = None


def answer(client: ClientApp, member: Member, message: Message, node_id: int) -> Answer:
    """The reply to a message, held against what is declared; an error becomes one of the fixed sentences."""
    started = time.monotonic()
    kind = message.metadata.message_type
    adapter = arrays_of(message.content) if kind in {TRAIN, JUDGE} and message.has_content() else None
    context = Context(
        run_id=message.metadata.run_id,
        node_id=node_id,
        node_config=member.node_config(),
        state=RecordDict(),
        run_config={},
    )
    try:
        reply = client(message, context)
        numbers, arrays = _checked(kind, reply, adapter)
    except Exception as error:
        sentence = REFUSED if isinstance(error, NotAgreed) else FAILED
        code = _REFUSED if isinstance(error, NotAgreed) else _FAILED
        refusal = Message(Error(code=code, reason=sentence), reply_to=message)
        return Answer(refusal, time.monotonic() - started, {}, 0, error)
    size = sum(array.nbytes for array in arrays.values())
    return Answer(reply, time.monotonic() - started, numbers, size)


def _checked(kind: str, reply: Message, adapter: Arrays | None) -> tuple[dict[str, float], Arrays]:
    """The numbers and arrays of a reply; raises FederationError where it holds more than is declared."""
    content = reply.content
    if set(content) - {"arrays", "metrics"}:
        raise FederationError("A reply holds other records than arrays and numbers.")
    numbers = dict(content["metrics"]) if "metrics" in content else {}
    arrays = arrays_of(content)
    check_numbers(kind, numbers)
    check_arrays(kind, arrays, None if kind == ADAPTER else adapter)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FederationError(f"The training gave NaN or infinity in {name}; nothing was sent.")
    return {name: float(str(value)) for name, value in numbers.items()}, arrays
