"""storage/consent.py, storage/ledger.py, storage/site_numbers.py: what a site and its link keep about each other."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from fl.declared import JUDGE, check_numbers
from fl.errors import FederationError
from flows.terminal_sites import event_words, sites_report, sites_table
from storage.consent import changes, read_consent, rules_hash, write_consent
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.site_numbers import (
    NUMBERS,
    FederationOfSites,
    append_numbers,
    load_federation,
    read_numbers,
    save_federation,
    worst_site,
)

RULES = json.dumps({"training": {"steps": 4, "batch_size": 16}, "score": "mean_token"})


def test_a_consent_is_kept_word_for_word_with_the_hash_of_the_text(tmp_path: Path) -> None:
    assert read_consent(tmp_path) is None
    write_consent(tmp_path, RULES, 2, "link:9092")
    consent = read_consent(tmp_path)
    assert consent is not None
    assert (consent.rules, consent.number, consent.link) == (RULES, 2, "link:9092")
    assert consent.sha256 == hashlib.sha256(RULES.encode()).hexdigest() == rules_hash(RULES)


@pytest.mark.parametrize("how", ["edited", "cut off"])
def test_a_consent_that_was_tampered_with_is_none(how: str, tmp_path: Path) -> None:
    write_consent(tmp_path, RULES, 0, "link:9092")
    path = tmp_path / "consent.json"
    text = path.read_text()
    path.write_text(text.replace("16", "64") if how == "edited" else text[:-40])
    with pytest.raises(StorageError, match="to be asked again"):
        read_consent(tmp_path)


def test_what_changed_in_rules_is_told_value_by_value() -> None:
    other = json.dumps({"training": {"steps": 400, "batch_size": 16}, "k": 3})
    assert changes(RULES, RULES) == []
    assert changes(RULES, other) == ["training.steps: 4 -> 400", 'score: "mean_token" -> null', "k: null -> 3"]


def test_the_ledger_has_a_line_for_each_request_and_one_for_many_questions(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for _ in range(5):
        ledger.call("PullMessages", b"ab")
    ledger.reply("train", {"numbers": {"loss": 1.5}, "array_bytes": 10})
    ledger.call("PushObject", b"\x0a\x03ArrayChunk 12\x00abc")
    ledger.call("SendNodeHeartbeat", b"abc")
    ledger.close()
    polls, reply, push, beat = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert (polls["calls"], polls["bytes"]) == ({"PullMessages": 5}, 10)
    assert polls["sha256"] == hashlib.sha256(b"ab" * 5).hexdigest()
    assert (reply["kind"], reply["numbers"]) == ("train", {"loss": 1.5})
    assert push["sha256"] == hashlib.sha256(b"\x0a\x03ArrayChunk 12\x00abc").hexdigest()
    assert (push["bytes"], push["carries"]) == (19, "a part of a reply (ArrayChunk)")
    assert beat["calls"] == {"SendNodeHeartbeat": 1}
    assert beat["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert ledger.bytes_sent == 10 + 19 + 3


def test_polls_are_written_every_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("storage.ledger.time.monotonic", lambda: now[0])
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for now[0] in range(0, 130, 10):
        ledger.call("PullMessages", b"ab")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["calls"]["PullMessages"] for line in lines] == [8]


def test_requests_of_several_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def push(number: int) -> None:
        for _ in range(50):
            ledger.call("PushObject", bytes([number]) * 100)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert len(lines) == 200
    assert len({line["sha256"] for line in lines}) == 4


def test_a_ledger_that_cannot_be_written_stops_what_was_to_be_sent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "folder" / "ledger.jsonl")
    (tmp_path / "folder").rename(tmp_path / "gone")
    with pytest.raises(StorageError, match="nothing is sent"):
        ledger.call("PushObject", b"x")


def test_numbers_of_a_round_told_twice_count_once_and_half_a_line_not_at_all(tmp_path: Path) -> None:
    row = {"loss": 1.0, "partition": 0}
    append_numbers(tmp_path, 1, [row, {**row, "partition": 1}])
    append_numbers(tmp_path, 1, [{**row, "loss": 2.0}])
    append_numbers(tmp_path, 2, [{**row, "loss": 3.0}])
    with (tmp_path / NUMBERS).open("a") as file:
        file.write('{"round": 3, "part')
    found = [(each["round"], each["partition"], each["loss"]) for each in read_numbers(tmp_path)]
    assert found == [(1, 0, 2.0), (1, 1, 1.0), (2, 0, 3.0)]


def test_a_federation_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    federation = FederationOfSites("{}", {0: 2**63 + 5, 1: 7}, ("north", "south"), 2, 30.0, "model")
    save_federation(tmp_path, federation)
    assert load_federation(tmp_path) == federation
    assert [number for number in range(1, 6) if federation.judges(number, 5)] == [2, 4, 5]
    with pytest.raises(StorageError, match="atalaia superlink"):
        load_federation(tmp_path / "nowhere")


ROWS = [
    {
        "round": 3,
        "partition": partition,
        "loss": loss,
        "surprise_50": 0.1,
        "surprise_90": 0.2,
        "surprise_99": 0.3,
        "threshold": 0.35,
        "calibration_windows": 9,
        "held_out_windows": 20,
        "flagged_windows": 1,
        "alerts": alerts,
        "seconds": 1.0,
    }
    for partition, loss, alerts in ((0, 0.5, 4), (2, 0.75, -1))
]


def test_the_worst_site_is_the_one_with_the_highest_loss_and_is_named_in_every_report() -> None:
    names = ("north", "south", "west")
    worst = worst_site(ROWS, 3)
    assert worst is not None
    assert worst["partition"] == 2
    assert worst_site(ROWS, 2) is None
    table = sites_table(ROWS, names, 3)
    assert table[-2:] == ["Worst: west, loss 0.750 on its own calibration windows.", "Nothing was told by south."]
    assert "Worst site after round 3: **west**, loss 0.750." in sites_report(ROWS, names)
    assert table[1].split()[-1] == "4"
    assert table[2].split()[-1] == "-"


def test_a_round_that_begins_and_one_that_is_committed_are_told_by_the_sites_names() -> None:
    names = ("north", "south", "west")
    begun = {"event": "round", "round": 2, "clients": [0, 2], "learning_rate": 1e-3}
    assert event_words(begun, names) == "round 2: north, west"
    committed = {"event": "committed", "round": 2, "of": 3, "loss": 0.25, "clients": 2}
    assert event_words(committed, names) == "round 2 of 3 committed: loss 0.250"
    spent = event_words(committed | {"epsilon": 3.14159}, names)
    assert spent == "round 2 of 3 committed: loss 0.250, epsilon 3.14 spent"
    nobody = event_words(committed | {"loss": None, "epsilon": None}, names)
    assert nobody == "round 2 of 3 committed: nothing was trained, no bound"
    assert event_words(begun | {"clients": []}, names) == "round 2: no site is drawn"
    without = {"event": "without", "sites": ["south", "west"]}
    assert event_words(without, names) == "goes on without south, west, which do not take part"
    assert event_words({"event": "started", "rounds": 3, "committed": 0}, names) is None


@pytest.mark.parametrize(
    ("name", "value"), [("partition", 1.0), ("alerts", -2), ("held_out_windows", -1), ("loss", "1"), ("seconds", True)]
)
def test_a_number_that_is_not_of_its_kind_is_refused(name: str, value: object) -> None:
    good = {key: each for key, each in ROWS[1].items() if key != "round"}
    check_numbers(JUDGE, good)
    with pytest.raises(FederationError, match=name):
        check_numbers(JUDGE, good | {name: value})
