"""What server and clients of a round send each other: arrays as they are, or differences packed by a codec."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fl.codecs import Codec, decode, encode, encode_with_feedback, encoded_bytes
from fl.errors import BadMessage

Arrays = dict[str, np.ndarray]
UPDATE = "update"
"""Name of the one packed array of a coded message."""


@dataclass(frozen=True)
class Exchange:
    """A round as the server sees it.

    A coded download holds the adapter's difference to `first`, which every client makes itself; a coded upload holds
    what the client's training changed. Updates are added to the server's own adapter, so that what coding the download
    loses does not add up over the rounds.
    """

    current: Arrays
    """The adapter before the round."""
    first: Arrays
    """The adapter of round 0; needed only where the download is coded."""
    trained: frozenset[str]
    """The arrays that this round trains."""
    uplink: Codec
    downlink: Codec
    sent: Arrays = field(init=False)
    """What goes to each client."""
    start: Arrays = field(init=False)
    """What the clients make of it."""

    def __post_init__(self) -> None:
        sent = pack_adapter(self.current, self.first, self.downlink)
        object.__setattr__(self, "sent", sent)
        object.__setattr__(self, "start", unpack_adapter(sent, self.first, self.downlink))

    @property
    def changing(self) -> Arrays:
        """The arrays of the current adapter that this round trains."""
        return {name: array for name, array in self.current.items() if name in self.trained}

    @property
    def expected(self) -> Arrays:
        """Arrays with the names, shapes and types that a reply must have."""
        if self.uplink.name == "none":
            return self.changing
        size = sum(array.size for array in self.changing.values())
        return {UPDATE: np.zeros(encoded_bytes(size, self.uplink), np.uint8)}

    def read(self, reply: Arrays) -> Arrays:
        """A reply's trained arrays, as if it had been sent uncoded; raises BadMessage where it cannot be decoded."""
        changing = self.changing
        if self.uplink.name != "none":
            update = decode(reply[UPDATE], self.uplink, changing)
        elif self.downlink.name != "none":
            update = {name: array - self.start[name] for name, array in reply.items()}
        else:
            return reply
        with np.errstate(over="ignore"):
            arrays = {name: array + update[name] for name, array in changing.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise BadMessage("holds an update that is not finite")
        return arrays


def pack_adapter(current: Arrays, first: Arrays, codec: Codec) -> Arrays:
    """What a client is sent."""
    if codec.name == "none":
        return current
    return {UPDATE: encode({name: array - first[name] for name, array in current.items()}, codec)}


def unpack_adapter(received: Arrays, first: Arrays, codec: Codec) -> Arrays:
    """The adapter that a client was sent; raises BadMessage where it cannot be decoded."""
    if codec.name == "none":
        return received
    if received.keys() != {UPDATE}:
        raise BadMessage(f"holds other arrays than the one of codec {codec.name}")
    update = decode(received[UPDATE], codec, first)
    return {name: array + update[name] for name, array in first.items()}


def pack_update(
    trained: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray], codec: Codec, generator: np.random.Generator
) -> Arrays:
    """A client's reply without error feedback: the generator rounds."""
    if codec.name == "none":
        return dict(trained)
    return {UPDATE: encode(_difference(trained, start), codec, generator)}


def pack_update_with_feedback(
    trained: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray], codec: Codec, residual: Arrays
) -> tuple[Arrays, Arrays]:
    """A client's reply with error feedback, and the residual from now on; arrays not trained now keep theirs."""
    packed, left = encode_with_feedback(_difference(trained, start), residual, codec)
    return {UPDATE: packed}, residual | left


def _difference(trained: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array - start[name] for name, array in trained.items()}
