"""One link and three sites as processes of their own, on real HDFS logs: the result, what leaves a site, and faults."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto import appio_pb2, fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from recording_proxy import RecordingProxy, Request, read_fetches
from site_federations import NAMES, gathered_shares, real_logs
from site_processes import Programs, free_ports, left_over, places, wait_until

from fl.adapter_files import read_adapter
from fl.declared import NUMBERS
from fl.federation import save_job
from flows.settings import run_config
from flows.site_rules import SiteRules, federation_rules
from storage.adapters import committed_rounds
from storage.certificates import issue
from storage.layout import Layout
from storage.site_numbers import read_numbers

pytestmark = [pytest.mark.long, pytest.mark.real_logs, pytest.mark.timeout(1800)]

SETTINGS = ("steps=2", "batch_size=4", "rounds=3", "fraction=0.67", "rank=2", "seed=3")
_REQUESTS = {
    "ActivateNode": fleet_pb2.ActivateNodeRequest,
    "DeactivateNode": fleet_pb2.DeactivateNodeRequest,
    "SendNodeHeartbeat": heartbeat_pb2.SendNodeHeartbeatRequest,
    "PullMessages": fleet_pb2.PullMessagesRequest,
    "PullObject": message_pb2.PullObjectRequest,
    "ConfirmMessageReceived": message_pb2.ConfirmMessageReceivedRequest,
    "PushMessages": fleet_pb2.PushMessagesRequest,
    "PushObject": message_pb2.PushObjectRequest,
}


def agreed_rules(model: Path, layout: Layout, certs: Path, model_port: int | None = None) -> SiteRules:
    """The rules as the link itself makes them."""
    config = run_config("hdfs-2pct", [*SETTINGS, f"model.name={model}"])
    return federation_rules(config, certs / "link", model_port, layout)[0]


@dataclass
class Ran:
    """A federation that has run to its end."""

    rules: SiteRules
    run: Path
    homes: Path
    logs: list[Path]
    model: Path
    requests: list[Request]
    fetches: list[tuple[str, dict[str, str]]]
    """Requests for the base model: request line and headers."""
    hosts: set[str]
    own_networks: bool
    said: dict[str, str]

    def site(self, name: str) -> Path:
        return self.homes / name / "sites" / name

    def prepared(self, name: str) -> Path:
        [stage] = (self.homes / name / "stages" / "site").iterdir()
        return stage


@pytest.fixture(scope="module")
def ran(hdfs_archive: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("federation")
    logs = real_logs(hdfs_archive, 240, folder)
    ports, programs, homes = free_ports(4), Programs(folder), folder / "homes"
    certs = folder / "certs" / "link"
    settings = ["hdfs-2pct", f"model.name={tiny_model}", *SETTINGS, "--model-port", str(ports[3])]
    with places(len(NAMES)) as found:
        issue(folder / "certs", NAMES, [place.link_host for place in found])
        rules = agreed_rules(tiny_model, Layout(folder / "rules"), folder / "certs", ports[3])
        proxy = RecordingProxy(certs, ("127.0.0.1", ports[0]), "0.0.0.0")
        # The rules name the model's port, so these listen at the link's, each at a site's way to it.
        model_proxies = [RecordingProxy(certs, ("127.0.0.1", ports[3]), each.link_host, ports[3]) for each in found]
        try:
            link = programs.link(homes / "link", certs, ports, settings)
            for name, log, place in zip(NAMES, logs, found, strict=True):
                address = f"{place.link_host}:{proxy.port}"
                site_certs = folder / "certs" / "sites" / name
                # The last one has no model and gets it from the link.
                model = None if name == NAMES[2] else tiny_model
                programs.site(homes / name, log, site_certs, address, model, "--accept", rules.sha256, place=place)
            wait_until(lambda: all(each.process.poll() is not None for each in programs.started), programs, 900)
            assert [each.process.returncode for each in programs.started] == [0] * 4, link.text
            assert left_over(homes / "link") == []
            [run] = (homes / "link" / "runs").iterdir()
            said = {name: each.text for name, each in zip(("link", *NAMES), programs.started, strict=True)}
            hosts = {host for host, _ in proxy.connections}
            fetches = [
                fetch for each in model_proxies for _, kept in each.connections for fetch in read_fetches(bytes(kept))
            ]
            networks = bool(found[0].prefix)
            yield Ran(rules, run, homes, logs, tiny_model, proxy.requests(), fetches, hosts, networks, said)
        finally:
            programs.end()
            for each in (proxy, *model_proxies):
                each.close()


def test_the_sites_end_with_the_bytes_of_the_simulation(ran: Ran, tmp_path: Path) -> None:
    shares = gathered_shares(ran.homes, tmp_path / "shares")
    job = replace(
        ran.rules.job("simulated", tmp_path / "simulated"), model_folder=ran.model, shares_folder=shares, device="cpu"
    )
    save_job(job)
    for _ in range(3):  # Ray gives up by itself where a machine is too busy; the job then asks to be run again
        done = subprocess.run(
            [sys.executable, "-m", "fl.simulation", str(job.run_folder)], capture_output=True, text=True, check=False
        )
        if "Ray did not start" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    simulated = committed_rounds(job.run_folder)
    assert len(simulated) == 4
    assert [each.adapter_hash for each in committed_rounds(ran.run)] == [each.adapter_hash for each in simulated]
    assert [each.adapter.read_bytes() for each in committed_rounds(ran.run)] == [
        each.adapter.read_bytes() for each in simulated
    ]


def test_each_site_has_an_address_of_its_own(ran: Ran) -> None:
    if not ran.own_networks:
        pytest.skip("this system allows no network namespaces")
    assert ran.hosts == {f"10.213.{site}.2" for site in range(3)}


def test_the_link_names_the_worst_site_and_each_site_its_alerts(ran: Ran) -> None:
    rows = read_numbers(ran.run)
    assert [(row["round"], row["partition"]) for row in rows] == [(r, p) for r in (1, 2, 3) for p in range(3)]
    last = {NAMES[row["partition"]]: row for row in rows if row["round"] == 3}
    worst = max(last, key=lambda name: last[name]["loss"])
    assert f"Worst: {worst}, loss {last[worst]['loss']:.3f}" in ran.said["link"]
    assert f"**{worst}**" in (ran.run / "sites.md").read_text()
    for name, row in last.items():
        alerts = (ran.site(name) / "alerts.jsonl").read_text().splitlines()
        assert len(alerts) == row["alerts"]
        assert f"Done. Rounds: 3; alerts: {len(alerts)}, in " in ran.said[name]


def test_a_site_makes_only_the_calls_it_needs_and_never_asks_for_a_bundle(ran: Ran) -> None:
    assert {request.call for request in ran.requests} == set(_REQUESTS)
    headers = {name for request in ran.requests for name in request.headers}
    assert headers <= {
        ":method",
        ":scheme",
        ":path",
        ":authority",
        "te",
        "content-type",
        "user-agent",
        "grpc-accept-encoding",
        "grpc-timeout",
        "flwr-public-key-bin",
        "flwr-timestamp",
        "flwr-signature-bin",
        "flwr-package-name",
        "flwr-package-version",
        "flwr-component-name",
    }, headers


def test_a_site_that_is_given_the_model_sends_only_the_names_of_its_files(ran: Ran) -> None:
    given = {path.name for path in ran.model.iterdir()}
    lines = [line.split(" ") for line, _ in ran.fetches]
    assert {(method, version) for method, _, version in lines} == {("GET", "HTTP/1.1")}
    assert lines[0][1] == "/files.json"
    asked = {path.removeprefix("/") for _, path, _ in lines[1:]}
    assert asked <= given
    assert "model.safetensors" in asked
    headers = {name for _, each in ran.fetches for name in each}
    assert headers <= {"Host", "User-Agent", "Accept-Encoding", "Connection"}, headers
    assert {each["User-Agent"] for _, each in ran.fetches} == {"atalaia"}
    lines_of = {name: (ran.site(name) / "ledger.jsonl").read_text() for name in NAMES}
    assert [name for name in NAMES if '"fetch"' in lines_of[name]] == [NAMES[2]]


def test_every_byte_of_every_reply_is_an_adapter_or_a_declared_number(ran: Ran) -> None:
    adapter = read_adapter(committed_rounds(ran.run)[0].adapter)
    # What the link has itself, byte for byte, is not sent to it: arrays that a round left as they were.
    known: dict[str, bytes] = {}
    for content in (RecordDict(), *(_record(each.arrays()) for each in committed_rounds(ran.run))):
        known |= {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    contents: dict[str, bytes] = {}
    for request in (each for each in ran.requests if each.call == "PushObject"):
        for data in request.messages():
            pushed = message_pb2.PushObjectRequest.FromString(data)
            contents[pushed.object_id] = pushed.object_content
    used: set[str] = set()
    kinds: Counter[str] = Counter()
    for request in (each for each in ran.requests if each.call == "PushMessages"):
        for data in request.messages():
            pushed_head = fleet_pb2.PushMessagesRequest.FromString(data)
            [tree] = pushed_head.message_object_trees
            ids = _ids(tree)
            used |= ids
            parts = {each: contents[each] if each in contents else known[each] for each in ids}
            message = inflate_object_from_contents(tree.object_id, parts)
            assert isinstance(message, Message)
            kind = message.metadata.message_type
            kinds[kind] += 1
            assert set(message.content) <= {"arrays", "metrics"}
            if "metrics" in message.content:
                assert set(message.content["metrics"]) == set(NUMBERS[kind])
            for name, array in message.content.get("arrays", {}).items():
                assert isinstance(array, Array)
                assert (array.dtype, tuple(array.shape)) == ("float32", adapter[name].shape)
                assert array.numpy().nbytes == adapter[name].nbytes
    assert set(contents) <= used
    assert kinds == {"query.rules": 3, "train": 6, "evaluate": 9, "query.done": 3}


def _record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _ids(tree: message_pb2.ObjectTree) -> set[str]:
    return {tree.object_id, *(each for child in tree.children for each in _ids(child))}


def test_no_log_text_token_or_hash_is_in_what_the_sites_sent(ran: Ran) -> None:
    sent = b"\n".join(
        piece
        for request in ran.requests
        for piece in (request.body, *(value for value in request.headers.values() if isinstance(value, bytes)))
    )
    assert len(sent) > 100_000
    searched = 0
    for name, log in zip(NAMES, ran.logs, strict=True):
        tokenized = ran.prepared(name) / "tokenized"
        texts = pl.read_parquet(tokenized / "messages.parquet")["text"].to_list()
        sequences = pl.read_parquet(tokenized / "sequences.parquet")
        blocks = {word for word in log.read_bytes().split() if word.startswith(b"blk_")}
        needles = [text.encode()[:24] for text in texts] + list(blocks) + [log.name.encode()]
        needles += [line[:40] for line in log.read_bytes().splitlines()[::50]]
        for digest in sequences["sequence_hash"]:
            needles += [digest.encode(), bytes.fromhex(digest)]
        for ids in sequences["token_ids"].to_list():
            start = np.array(ids[:8])
            needles += [start.astype(kind).tobytes() for kind in ("<u2", "<u4", "<i8", ">u4")]
            needles += [",".join(map(str, ids[:8])).encode(), ", ".join(map(str, ids[:8])).encode()]
        assert [needle for needle in needles if needle in sent] == []
        searched += len(needles)
    assert searched > 1000
    # The search itself finds what is there.
    assert b"lora_A" in sent
    assert b"calibration_windows" in sent


def test_the_ledger_lists_every_request_that_was_sent(ran: Ran) -> None:
    polls = {"ActivateNode", "PullMessages", "SendNodeHeartbeat", "PullObject", "ConfirmMessageReceived"}
    captured = Counter(
        (request.call, hashlib.sha256(data).hexdigest()) for request in ran.requests for data in request.messages()
    )
    lines = [json.loads(line) for name in NAMES for line in (ran.site(name) / "ledger.jsonl").read_text().splitlines()]
    listed = Counter((line["call"], line["sha256"]) for line in lines if line["entry"] == "call")
    asked: Counter[str] = Counter()
    for line in lines:
        asked.update(line["calls"] if line["entry"] == "polls" else {})
    for (call, digest), number in captured.items():
        if call not in polls:
            assert listed[call, digest] >= number, call
    assert sum(listed[each] for each in listed if each[0] == "PushObject") == sum(
        number for (call, _), number in captured.items() if call == "PushObject"
    )
    for call in polls:
        assert asked[call] >= sum(number for (each, _), number in captured.items() if each == call)
    total = sum(line["bytes"] for line in lines if line["entry"] in {"call", "polls"})
    assert total >= sum(len(data) for request in ran.requests for data in request.messages())


def test_all_requests_are_what_flower_says_they_are(ran: Ran) -> None:
    assert appio_pb2  # Flower's messages are all loaded
    for request in ran.requests:
        for data in request.messages():
            message = _REQUESTS[request.call].FromString(data)
            assert message.SerializeToString() == data  # no field that Flower does not know


def test_a_killed_link_and_a_killed_site_end_with_the_same_bytes(ran: Ran, tiny_model: Path, tmp_path: Path) -> None:
    import os
    import signal

    ports, programs, homes = free_ports(4), Programs(tmp_path), tmp_path / "homes"
    issue(tmp_path / "certs", NAMES)
    settings = ["hdfs-2pct", f"model.name={tiny_model}", *SETTINGS, "--model-port", str(ports[3])]
    certs, rules = (
        tmp_path / "certs",
        agreed_rules(tiny_model, Layout(tmp_path / "rules"), tmp_path / "certs", ports[3]),
    )

    def start(name: str) -> None:
        address, log = f"127.0.0.1:{ports[0]}", ran.logs[NAMES.index(name)]
        # The last one has no model and gets it from the link.
        model = None if name == NAMES[2] else tiny_model
        programs.site(homes / name, log, certs / "sites" / name, address, model, "--accept", rules.sha256)

    def rounds() -> int:
        found = list((homes / "link" / "runs").glob("*/rounds"))
        return len(committed_rounds(found[0].parent)) - 1 if found else -1

    try:
        programs.link(homes / "link", certs / "link", ports, settings)
        for name in NAMES:
            start(name)
        wait_until(lambda: rounds() >= 1, programs, 600)
        superlink = next(each for each in left_over(homes / "link") if "fl.link_guard" in " ".join(each.cmdline()))
        os.kill(superlink.pid, signal.SIGKILL)  # the link alone: its supervisor starts it again
        wait_until(lambda: rounds() >= 2, programs, 600)
        programs.started[1].kill()  # a site, by a power cut
        programs.started[0].kill()  # the link's command with all that it started
        start(NAMES[0])
        programs.link(homes / "link", certs / "link", ports, settings)
        last = [programs.started[2], programs.started[3], programs.started[4], programs.started[5]]
        wait_until(lambda: all(each.process.poll() is not None for each in last), programs, 900)
        assert [each.process.returncode for each in last] == [0] * 4
        [run] = (homes / "link" / "runs").iterdir()
        assert [each.adapter.read_bytes() for each in committed_rounds(run)] == [
            each.adapter.read_bytes() for each in committed_rounds(ran.run)
        ]
        assert left_over(homes / "link") == []
    finally:
        programs.end()
