"""The client of a real site: the usual client's training behind rules that its operator agreed to.

A message that asks for anything else is refused, a reply holds what is declared and nothing more, and an error leaves
the site as one of a few fixed sentences: its own words might quote a log.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp

from fl import client_app
from fl.declared import ADAPTER, JUDGE, TRAIN, check_arrays, check_numbers
from fl.errors import BadMessage, FederationError
from fl.exchange import Arrays
from fl.plain_arrays import claimed_array

_FAILED, _REFUSED = 101, 102
FAILED = "The site could not do this; its own screen says why."
REFUSED = "The site's operator has not agreed to these rules."


class NotAgreed(FederationError):
    """What is asked is not in the rules that the site's operator agreed to."""


class Member(Protocol):
    """A site: what it agreed to, where its windows lie, and how it judges itself."""

    def admit(self, rules: str, number: int) -> Mapping[str, float]:
        """Take part by these rules under this number, and prepare the windows; raises NotAgreed."""

    def expect(self, kind: str, config: Mapping[str, Any], *, last: bool = False) -> None:
        """Raise NotAgreed where a request of this kind has another configuration than the one agreed to."""

    def training_on(self, config: Mapping[str, Any], received: Arrays) -> None:
        """Note that a round is trained; raise NotAgreed where that would tell more than was accounted for."""

    def sends(self, kind: str, number: int) -> Arrays:
        """Arrays of the names, shapes and types that a reply of this kind holds in a round."""

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
        member.expect(ADAPTER, dict(message.content["config"]))
        return client_app.first_adapter(message, context)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        config = dict(message.content["config"])
        member.expect(TRAIN, config)
        member.training_on(config, arrays_of(message.content))
        return client_app.train(message, context)

    @client.evaluate()
    def judge(message: Message, context: Context) -> Message:
        config = dict(message.content["config"])
        last = bool(config.pop("last"))
        member.expect(JUDGE, config, last=last)
        return _numbers(message, member.judge(config, arrays_of(message.content), last=last))

    @client.query("done")
    def finish(message: Message, context: Context) -> Message:
        member.finish()
        return Message(RecordDict(), reply_to=message)

    return client


def arrays_of(content: RecordDict) -> Arrays:
    """The arrays of a message by name; none where it has no record of them.

    Raises BadMessage for one that is not finite float32 or packed bytes in numpy's plain form.
    """
    if "arrays" not in content:
        return {}
    sent = content["arrays"]
    return {name: claimed_array(array, name, ("float32", "uint8")) for name, array in sent.items()}


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
    context = Context(
        run_id=message.metadata.run_id,
        node_id=node_id,
        node_config=member.node_config(),
        state=RecordDict(),
        run_config={},
    )
    try:
        reply = client(message, context)
        number = int(message.content["config"]["round"]) if kind == TRAIN else 0
        numbers, arrays = _checked(kind, reply, member.sends(kind, number))
    except Exception as error:
        sentence = REFUSED if isinstance(error, NotAgreed) else FAILED
        code = _REFUSED if isinstance(error, NotAgreed) else _FAILED
        refusal = Message(Error(code=code, reason=sentence), reply_to=message)
        return Answer(refusal, time.monotonic() - started, {}, 0, error)
    size = sum(array.nbytes for array in arrays.values())
    return Answer(reply, time.monotonic() - started, numbers, size)


def _checked(kind: str, reply: Message, expected: Arrays) -> tuple[dict[str, float], Arrays]:
    """The numbers and arrays of a reply; raises FederationError where it holds more than is declared."""
    content = reply.content
    if set(content) - {"arrays", "metrics"}:
        raise FederationError("A reply holds other records than arrays and numbers.")
    numbers = dict(content["metrics"]) if "metrics" in content else {}
    check_numbers(kind, numbers)
    try:
        arrays = arrays_of(content)
    except BadMessage as error:
        raise FederationError(f"The reply {error}; nothing was sent.") from error
    check_arrays(kind, arrays, expected)
    return {name: float(str(value)) for name, value in numbers.items()}, arrays
