"""Federations of sites for tests: logs of a few sites, and a grid that hands messages to them without a network."""

import random
import re
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from federated_jobs import LocalGrid
from flwr.app import Message
from flwr.app.error import Error

from fl import client_app
from fl.federation import save_job
from fl.server_app import train_federation
from fl.site_app import answer, site_app
from flows.config import RunConfig
from flows.site_member import SiteMember, SiteSettings
from flows.site_rules import SiteRules, rules_of
from storage.adapters import committed_rounds
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.ledger import Ledger
from storage.site_numbers import FederationOfSites

NAMES = ("north", "south", "west")
_BLOCK = re.compile(rb"blk_-?\d+")


def deal_lines(lines: Iterable[bytes], blocks: int, sites: int, folder: Path) -> list[Path]:
    """The lines of the first so many blocks, those of a block to one site, as one log for each site."""
    found: dict[bytes, int] = {}
    dealt: list[list[bytes]] = [[] for _ in range(sites)]
    for line in lines:
        match = _BLOCK.search(line)
        if match is None or (match.group() not in found and len(found) >= blocks):
            continue
        dealt[found.setdefault(match.group(), len(found) % sites)].append(line)
    paths = [folder / f"{name}.log" for name in NAMES[:sites]]
    for path, mine in zip(paths, dealt, strict=True):
        path.write_bytes(b"".join(mine))
    return paths


def real_logs(archive: Path, blocks: int, folder: Path) -> list[Path]:
    """Logs of three sites from the real HDFS sample."""
    with tarfile.open(archive) as tar:
        log = tar.extractfile("HDFS.log")
        assert log is not None
        return deal_lines(log, blocks, len(NAMES), folder)


def simulated_logs(blocks: int, folder: Path) -> list[Path]:
    """Logs of three sites from the simulated HDFS."""
    raw = folder / "raw"
    raw.mkdir()
    generate(raw, blocks, 0)
    return deal_lines((raw / "HDFS.log").read_bytes().splitlines(keepends=True), blocks, len(NAMES), folder)


def tiny_rules(model: Path, layout: Layout, **more: Any) -> SiteRules:  # noqa: ANN401
    """Rules of a federation that trains the tiny model for a few steps."""
    from fl.model import prepare_model

    config = RunConfig.model_validate(
        {
            "preset": "demo",
            "dataset": {"name": "hdfs"},
            "split": {"train": 0.5, "calibration": 0.2, "validation": 0.1, "test": 0.2},
            "model": {"name": str(model)},
            "tuning": {"rank": 2},
            "training": {"steps": 2, "batch_size": 4},
            "federation": {"clients": 3, "fraction": 0.67, "rounds": 2, "seed": 7},
            "scoring": {"scored_rounds": "all"},
            **more,
        }
    )
    return rules_of(config, prepare_model(str(model), layout.models), len(NAMES))


def federation_of(rules: SiteRules, model: Path, **nodes: int) -> FederationOfSites:
    """What the server knows; `nodes` are the sites' nodes by name, else 101, 102, ..."""
    known = {partition: nodes.get(name, 101 + partition) for partition, name in enumerate(NAMES)}
    return FederationOfSites(rules.text(), known, NAMES, rules.judged_rounds, 0.0, str(model))


def gathered_shares(homes: Path, folder: Path) -> Path:
    """The shares that the sites made for themselves, each in its own home, in one folder as the simulation has them."""
    folder.mkdir()
    for name in NAMES:
        [share] = (homes / name / "stages" / "site").glob("*/shares/*")
        (folder / share.name).write_bytes(share.read_bytes())
    return folder


def undisturbed_rounds(rules: SiteRules, model: Path, homes: Path, folder: Path) -> dict[int, bytes]:
    """The adapters' files that the same federation commits without sites, network and faults, by round."""
    folder.mkdir()
    job = replace(
        rules.job("simulated", folder / "simulated"),
        model_folder=model,
        shares_folder=gathered_shares(homes, folder / "shares"),
        device="cpu",
    )
    save_job(job)
    train_federation(LocalGrid(job, client_app.app), job)  # type: ignore[arg-type]
    return {each.number: each.adapter.read_bytes() for each in committed_rounds(job.run_folder)}


class SiteGrid:
    """A grid whose nodes are real sites in this process, each with its own home; replies come in any order."""

    def __init__(self, rules: SiteRules, model: Path, logs: list[Path], homes: Path) -> None:
        self._random = random.Random(0)
        self.asked: list[Message] = []
        self.replies: list[Message] = []
        self.members: dict[int, SiteMember] = {}
        self.online: set[int] = set()
        self.said: list[str] = []
        self._arrived: dict[str, Message] = {}
        for partition, (name, log) in enumerate(zip(NAMES, logs, strict=True)):
            settings = SiteSettings(name, str(log), "hdfs", "link:1", Path(), str(model), device="cpu", threads=1)
            layout = Layout(homes / name)
            ledger = Ledger(layout.home / "ledger.jsonl")
            self.members[101 + partition] = SiteMember(settings, layout, self._agree, ledger, self.said.append)
            self.online.add(101 + partition)
        self.agreed = {rules.sha256}

    def _agree(self, rules: SiteRules, digest: str, changed: list[str], number: int) -> bool:
        return digest in self.agreed

    def get_node_ids(self) -> list[int]:
        """The nodes, in any order."""
        return self._random.sample(sorted(self.online), len(self.online))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Each site's reply."""
        replies = [self._reply(message) for message in messages]
        return self._random.sample(replies, len(replies))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have the sites reply; the messages' numbers."""
        numbers = []
        for message in messages:
            number = message.metadata.__dict__["_message_id"] = str(self._random.getrandbits(60))
            self._arrived[number] = self._reply(message)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have not been pulled before, in any order."""
        pulled = [self._arrived.pop(number) for number in message_ids if number in self._arrived]
        return self._random.sample(pulled, len(pulled))

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.asked.append(message)
        if node not in self.online:
            return Message(Error(code=3, reason="Node unavailable"), reply_to=message)
        member = self.members[node]
        reply = answer(site_app(member), member, message, node).message
        self.replies.append(reply)
        return reply
