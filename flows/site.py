"""A real site: beside its own logs, it takes part in a federation by rules that its operator agreed to."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fl.errors import LinkLost, LinkRefused
from flows.site_member import Agree, SiteMember, SiteOutcome, SiteSettings, Tell, site_folder
from storage.alert_files import ENDINGS
from storage.certificates import CA, SITE_KEY, needed_files
from storage.datasets import DatasetConfig, resolve
from storage.disks import no_room
from storage.errors import DataError, FormatError, SourceError
from storage.layout import Layout
from storage.ledger import Ledger
from storage.log_inputs import find_logs, first_lines

if TYPE_CHECKING:
    from fl.node import Node
    from fl.site_app import Answer

_T = TypeVar("_T")

_IN_HAND = "in-hand.json"
"""Is there while a message is answered."""
_POLL_SECONDS = 0.5
_RECONNECT_SECONDS = 2.0
_ROOM_SECONDS = 5.0
_UNNOTICED_SECONDS = 8.0
"""For how long a site that was killed stays away, so that the link notices that the message in hand is lost."""


def _check_given(settings: SiteSettings) -> None:
    """Raise DataError for what would only be found wrong after the last round."""
    resolve(DatasetConfig(name=settings.dataset))
    find_logs([settings.logs, *settings.watch])
    path = Path(settings.logs).expanduser()
    if path.is_dir():
        raise SourceError(f"{settings.logs} is a folder; name the log in it.")
    head = first_lines(path)
    if head.startswith(b"PK\x03\x04") or head[257:262] == b"ustar":
        raise SourceError(f"{settings.logs} is an archive; unpack it and name the log.")
    if settings.output is not None and settings.output.suffix not in ENDINGS:
        raise FormatError(f"{settings.output} should end in {', '.join(ENDINGS)}: that says its format.")


class _Room:
    """Does what needs room on the disk, as soon as there is some; says once that it waits."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.leaving = False
        """Whether the site is about to end: then nothing waits any more."""

    def take(self, work: Callable[[], _T]) -> _T:
        """The work's result."""
        said = False
        while True:
            try:
                return work()
            except Exception as error:
                if self.leaving or not no_room(error):
                    raise
                if not said:
                    self._tell(f"{error} The site waits for room.")
                said = True
                time.sleep(_ROOM_SECONDS)


def run_site(settings: SiteSettings, layout: Layout, agree: Agree, tell: Tell) -> SiteOutcome:
    """Take part until the federation's last round is judged.

    Raises NotConsented where the operator does not agree, LinkRefused where the link does not know the site, DataError
    or LearningError where the site's own logs or model cannot be used.
    """
    authority, key = needed_files(settings.certs, (CA, SITE_KEY), "site")
    _check_given(settings)
    folder = site_folder(settings.name, layout)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = Ledger(folder / "ledger.jsonl" if settings.audit else None)
    member = SiteMember(settings, layout, agree, ledger, tell)
    try:
        _serve(settings, member, ledger, authority, key, tell)
    finally:
        ledger.close()
    member.outcome.bytes_sent = ledger.bytes_sent
    member.outcome.ledger = folder / "ledger.jsonl" if settings.audit else None
    return member.outcome


def _serve(settings: SiteSettings, member: SiteMember, ledger: Ledger, authority: Path, key: Path, tell: Tell) -> None:
    from fl.node import Node

    deadline, was_there, said, room = time.monotonic() + settings.wait, False, "", _Room(tell)

    def audit(call: str, data: bytes) -> None:
        """Nothing is sent that has no place in the ledger."""
        room.take(lambda: ledger.call(call, data))

    while not member.finished:
        node = Node(settings.link, authority, key, audit)
        try:
            node_id = _joined(node, member.folder)
            was_there, said = True, ""
            tell(f"connected to {settings.link}")
            _answer_all(node, node_id, member, ledger, room, tell)
            room.leaving = member.finished or member.refusal is not None
        except (LinkLost, LinkRefused) as error:
            if not was_there and (time.monotonic() > deadline or "certificate" in str(error)):
                raise
            # How a link cannot be reached changes from try to try, and is no news.
            kind = str(error) if isinstance(error, LinkRefused) else type(error).__name__
            if kind != said:
                tell(f"{error} Trying again.")
                said = kind
            time.sleep(_RECONNECT_SECONDS)
        except BaseException:
            room.leaving = True
            raise
        finally:
            _leave(node)
        if member.refusal is not None:
            raise member.refusal


def _joined(node: "Node", folder: Path) -> int:
    """Activate the node; after a kill in the middle of a message stay away until the link has noticed it."""
    node_id = node.activate()
    mark = folder / _IN_HAND
    if mark.exists():
        node.deactivate()
        time.sleep(_UNNOTICED_SECONDS)
        mark.unlink()
        node_id = node.activate()
    return node_id


def _leave(node: "Node") -> None:
    try:
        node.deactivate()
    except (LinkLost, LinkRefused, DataError):
        pass  # the link notices it by the silence
    finally:
        node.close()


def _answer_all(node: "Node", node_id: int, member: SiteMember, ledger: Ledger, room: _Room, tell: Tell) -> None:
    from fl.site_app import site_app

    client = site_app(member)
    while not member.finished and member.refusal is None:
        message = node.receive()
        if message is None:
            time.sleep(_POLL_SECONDS)
            continue
        found = _answer(message, node_id, client, member, ledger, room, tell)
        node.reply(found.message, found.seconds)
        (member.folder / _IN_HAND).unlink(missing_ok=True)
        if found.error is None:
            tell(_words(message.metadata.message_type, message, found.numbers, found.array_bytes))


def _answer(
    message: Any,  # noqa: ANN401
    node_id: int,
    client: Any,  # noqa: ANN401
    member: SiteMember,
    ledger: Ledger,
    room: _Room,
    tell: Tell,
) -> "Answer":
    """The answer to a message, which is in hand from now on; what it holds is in the ledger."""
    from fl.site_app import answer

    kind = message.metadata.message_type
    in_hand = json.dumps({"kind": kind, "since": time.time()})

    def answered() -> "Answer":
        found = answer(client, member, message, node_id)
        if found.error is not None and no_room(found.error) and member.refusal is None:
            raise found.error  # once there is room the same message can be answered
        return found

    room.take(lambda: (member.folder / _IN_HAND).write_text(in_hand))
    found = room.take(answered)
    facts: dict[str, Any] = {"numbers": found.numbers, "array_bytes": found.array_bytes}
    if found.error is not None:
        tell(f"{kind}: {type(found.error).__name__}: {found.error}")
        facts["refused"] = found.message.error.reason
    room.take(lambda: ledger.reply(kind, facts))
    return found


def _words(kind: str, message: Any, numbers: Mapping[str, float], array_bytes: int) -> str:  # noqa: ANN401
    if kind == "train":
        number = int(message.content["config"]["round"])
        return f"round {number}: trained, loss {numbers['loss']:.3f}; sent {array_bytes / 1e6:.3g} MB of weights"
    if kind == "evaluate":
        number = int(message.content["config"]["round"])
        return (
            f"round {number}: loss {numbers['loss']:.3f} on calibration windows, "
            f"{numbers['flagged_windows']:.0f} of {numbers['held_out_windows']:.0f} held-out windows flagged"
        )
    words = {
        "query.rules": "told the link how many windows there are",
        "query.adapter": "made the untrained adapter for all",
        "query.done": "the federation is over",
    }
    return words.get(kind, kind)
