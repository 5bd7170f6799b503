"""fl/site_app.py, fl/link_app.py, flows/site.py: sites with their own logs and a server, without a network."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from federated_jobs import LocalGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from site_federations import NAMES, SiteGrid, federation_of, simulated_logs, tiny_rules

from fl import client_app
from fl.accounting import Accountant
from fl.declared import ADAPTER, JUDGE, NUMBERS, TRAIN
from fl.errors import BadReply, FederationError, LinkLost, LostClients
from fl.federation import Federation, draw_clients, save_job
from fl.link import RunState
from fl.link_app import run_rounds
from fl.privacy import Privacy
from fl.server_app import train_federation
from fl.site_app import FAILED, REFUSED
from flows.link import LinkRun, LinkSettings
from flows.site import run_site
from flows.site_member import SiteSettings
from flows.site_rules import SiteRules
from storage.adapters import committed_rounds
from storage.certificates import issue
from storage.consent import read_consent
from storage.detection import DetectConfig
from storage.errors import DataError
from storage.events import append_event, read_events
from storage.judging import Judge
from storage.layout import Layout
from storage.log_inputs import Piece
from storage.score_store import ScoreStore
from storage.site_numbers import read_numbers
from tasks.detect_anomalies import detect_anomalies


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return simulated_logs(150, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def rules(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SiteRules:
    return tiny_rules(tiny_model, Layout(tmp_path_factory.mktemp("link")))


@pytest.fixture(scope="module")
def ran(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SiteGrid, Path]:
    """A federation run to its end, with its grid and the run's folder."""
    folder = tmp_path_factory.mktemp("sites")
    grid = SiteGrid(rules, tiny_model, logs, folder / "homes")
    job = rules.job(rules.run_id, folder / "run")
    save_job(job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATALAIA_HOME", str(folder / "homes" / "detecting"))
        run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    return grid, folder / "run"


def test_sites_train_what_the_simulation_of_their_shares_trains(
    ran: tuple[SiteGrid, Path], rules: SiteRules, tiny_model: Path, tmp_path: Path
) -> None:
    grid, folder = ran
    shares = tmp_path / "shares"
    shares.mkdir()
    for member in grid.members.values():
        found = Path(str(member.node_config()["shares-folder"]))
        [share] = found.iterdir()
        (shares / share.name).write_bytes(share.read_bytes())
    job = replace(
        rules.job("simulated", tmp_path / "simulated"), model_folder=tiny_model, shares_folder=shares, device="cpu"
    )
    save_job(job)
    train_federation(LocalGrid(job, client_app.app), job)  # type: ignore[arg-type]
    simulated = [each.adapter.read_bytes() for each in committed_rounds(job.run_folder)]
    assert [each.adapter.read_bytes() for each in committed_rounds(folder)] == simulated
    assert len(set(simulated)) == 3


def test_replies_hold_the_declared_numbers_and_adapter_arrays_and_nothing_else(ran: tuple[SiteGrid, Path]) -> None:
    replies = ran[0].replies
    assert {reply.metadata.message_type for reply in replies} == set(NUMBERS) - {ADAPTER}  # the link makes that itself
    for reply in replies:
        assert set(reply.content) <= {"arrays", "metrics"}
        for record in reply.content.values():
            if isinstance(record, ArrayRecord):
                assert all("lora_" in name and array.dtype == "float32" for name, array in record.items())
            if isinstance(record, MetricRecord):
                assert set(record) == set(NUMBERS[reply.metadata.message_type])
                assert all(isinstance(value, int | float) for value in record.values())


def test_each_round_is_judged_by_each_site_and_the_numbers_are_those_of_its_own_windows(
    ran: tuple[SiteGrid, Path],
) -> None:
    grid, folder = ran
    rows = read_numbers(folder)
    assert [(row["round"], row["partition"]) for row in rows] == [(r, p) for r in (1, 2) for p in range(3)]
    for row in rows[3:]:
        site = grid.members[101 + row["partition"]].folder
        scores = pl.read_parquet(site / "detector" / "calibration_scores.parquet")["score"].to_numpy()
        assert row["calibration_windows"] == len(scores)
        assert 0 < row["surprise_50"] <= row["surprise_90"] <= row["surprise_99"]
        facts = json.loads((site / "detector" / "detector.json").read_text())
        assert facts["threshold"] == row["threshold"]
        assert (scores > row["threshold"]).mean() <= facts["false_alarm_rate"]


def test_each_site_takes_its_threshold_by_the_rule_that_was_agreed_to(tiny_model: Path, tmp_path: Path) -> None:
    rules = tiny_rules(tiny_model, Layout(tmp_path / "link"), detection={"threshold": "tail", "false_alarm_rate": 0.05})
    logs = tmp_path / "logs"
    logs.mkdir()
    grid, job = _fresh(rules, tiny_model, simulated_logs(600, logs), tmp_path)
    run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    for member in grid.members.values():
        detector = member.folder / "detector"
        scores = np.sort(pl.read_parquet(detector / "calibration_scores.parquet")["score"].to_numpy())
        assert len(scores) > 20
        start = np.quantile(scores, 1 - 10 / len(scores))  # an exponential tail of the ten highest scores
        highest = scores[scores > start]
        expected = start + np.mean(highest - start) * np.log(len(highest) / (0.05 * len(scores)))
        facts = json.loads((detector / "detector.json").read_text())
        assert facts["threshold"] == pytest.approx(expected)
        assert facts["threshold_rule"] == "tail"


def test_each_site_has_alerts_of_its_own_logs_as_detect_writes_them(
    ran: tuple[SiteGrid, Path], logs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, folder = ran
    told = {row["partition"]: row["alerts"] for row in read_numbers(folder) if row["round"] == 2}
    assert sum(told.values()) > 0
    for partition, log in enumerate(logs):
        site = grid.members[101 + partition].folder
        alerts = [json.loads(line) for line in (site / "alerts.jsonl").read_text().splitlines()]
        assert len(alerts) == told[partition]
        mine = log.read_text()
        assert all(alert["window"] in mine for alert in alerts)
        monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / str(partition)))
        output = tmp_path / f"{partition}.jsonl"
        detect_anomalies(DetectConfig(files=(str(log),), model=str(site / "detector"), output=str(output)))
        again = [json.loads(line) for line in output.read_text().splitlines()]
        assert [alert["window"] for alert in again] == [alert["window"] for alert in alerts]


def test_a_sites_calibration_scores_are_what_its_detector_makes_of_the_raw_lines(
    ran: tuple[SiteGrid, Path], logs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path))
    grid, _ = ran
    for partition, log in enumerate(logs):
        folder = grid.members[101 + partition].folder / "detector"
        known = pl.read_parquet(folder / "calibration_scores.parquet").unique("sequence_hash")
        judge = Judge(folder)
        judge.store = ScoreStore(None)  # so that calibration windows are computed, not looked up
        assert judge.facts["score"] == "rarity"
        pieces = iter([Piece("the lines", 0, log.read_bytes())])
        found = pl.concat([judge.judged(windows) for windows in judge.stream().windows(pieces)]).unique("sequence_hash")
        both = known.join(found, on="sequence_hash")
        assert len(both) == len(known) > 5
        assert both["score"].to_numpy() == pytest.approx(both["score_right"].to_numpy(), rel=1e-4, abs=1e-4)
        assert both["score"].n_unique() > 3


def test_a_run_that_is_done_only_tells_the_sites_so(
    ran: tuple[SiteGrid, Path], rules: SiteRules, tiny_model: Path
) -> None:
    grid, folder = ran
    sent = len(grid.asked)
    run_rounds(grid, rules.job(rules.run_id, folder), federation_of(rules, tiny_model))  # type: ignore[arg-type]
    assert {message.metadata.message_type for message in grid.asked[sent:]} == {"query.done"}
    assert all(member.finished for member in grid.members.values())


def _fresh(rules: SiteRules, model: Path, logs: list[Path], folder: Path) -> tuple[SiteGrid, Any]:
    job = rules.job(rules.run_id, folder / "run")
    save_job(job)
    return SiteGrid(rules, model, logs, folder / "homes"), job


def test_a_site_whose_operator_does_not_agree_sends_one_fixed_sentence_and_prepares_nothing(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    grid.agreed = set()
    with pytest.raises(LostClients, match="3 of 3 sites do not take part") as raised:
        run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    assert REFUSED in str(raised.value)
    assert {reply.error.reason for reply in grid.replies} == {REFUSED}
    assert not list((tmp_path / "homes").rglob("*.parquet"))
    assert all(read_consent(member.folder) is None for member in grid.members.values())
    refused = [event for event in read_events(job.run_folder)[0] if event["event"] == "refused"]
    assert sorted(event["site"] for event in refused) == sorted(NAMES)


def test_rules_that_change_need_a_new_consent_and_the_operator_sees_what_changed(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, _ = _fresh(rules, tiny_model, logs, tmp_path)
    member = grid.members[101]
    member.admit(rules.text(), 0)
    seen: list[tuple[list[str], int]] = []
    member._agree = lambda _, digest, changed, number: bool(seen.append((changed, number)))
    member.admit(rules.text(), 0)
    assert seen == []  # agreed to already
    other = rules.model_copy(update={"false_alarm_rate": 0.05})
    with pytest.raises(FederationError, match="--accept"):
        member.admit(other.text(), 0)
    with pytest.raises(FederationError, match="--accept"):
        member.admit(rules.text(), 1)
    member._settings = replace(member._settings, link="other:1")
    with pytest.raises(FederationError, match="--accept"):
        member.admit(rules.text(), 0)
    assert seen == [
        (["false_alarm_rate: 0.002 -> 0.05"], 0),
        (["the site's number: 0 -> 1"], 1),
        (["the link: link:1 -> other:1"], 0),
    ]
    consent = read_consent(member.folder)
    assert consent is not None
    assert (consent.sha256, consent.number) == (rules.sha256, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tuning", json.dumps({"kind": "full"})),
        ("training", json.dumps({"steps": 100_000})),
        ("seed", 8),
        ("quantization", "nf4"),
        ("round", 3),
        ("learning-rate", 1.0),
        ("send-log", "yes"),
    ],
)
def test_a_request_for_other_training_than_agreed_to_is_refused(
    name: str, value: str | int, rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    from fl.server_app import round_config
    from fl.site_app import NotAgreed

    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    member = grid.members[101]
    asked = dict(round_config(job, 1, 1e-3))
    with pytest.raises(NotAgreed, match="before it has sent its rules"):
        member.expect(TRAIN, asked)
    member.admit(rules.text(), 0)
    member.expect(TRAIN, asked)
    with pytest.raises(NotAgreed):
        member.expect(TRAIN, {**asked, name: value})


@pytest.mark.parametrize(
    ("kind", "changed", "last"),
    [
        (TRAIN, {"round": 0}, False),
        (TRAIN, {"learning-rate": 0.0}, False),
        (JUDGE, {"round": 1, "learning-rate": 0.0}, False),  # only the last round is judged
        (JUDGE, {"round": 2, "learning-rate": 0.0}, False),
        (JUDGE, {"round": 1, "learning-rate": 0.0}, True),
        (JUDGE, {"round": 3, "learning-rate": 0.0}, True),
        (JUDGE, {"round": 2, "learning-rate": 1e-3}, True),
        (ADAPTER, {"round": 0, "learning-rate": 0.0}, False),
    ],
)
def test_a_request_that_has_no_place_in_the_rounds_is_refused(
    kind: str, changed: dict[str, Any], last: bool, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    from fl.server_app import round_config
    from fl.site_app import NotAgreed

    rules = tiny_rules(tiny_model, Layout(tmp_path / "link"), scoring={"scored_rounds": "last"})
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    member = grid.members[101]
    member.admit(rules.text(), 0)
    member.expect(TRAIN, dict(round_config(job, 1, 1e-3)))
    member.expect(JUDGE, dict(round_config(job, 2, 0.0)), last=True)
    with pytest.raises(NotAgreed, match="not in the rules"):
        member.expect(kind, dict(round_config(job, 1, 1e-3)) | changed, last=last)


def test_noise_of_a_site_s_own_is_not_averaged_away_by_asking_again(
    tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    privacy = {"noise": "local", "clipping_norm": 0.1, "noise_multiplier": 1.0}
    rules = tiny_rules(tiny_model, Layout(tmp_path / "link"), privacy=privacy)
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    [first, *_] = [message for message in grid.asked if message.metadata.message_type == TRAIN]
    node = first.metadata.dst_node_id
    [before] = [
        reply
        for reply in grid.replies
        if (reply.metadata.message_type, reply.metadata.src_node_id) == (TRAIN, node)
        and reply.content["metrics"]["round"] == 1
    ]

    def ask(arrays: dict[str, np.ndarray], **changed: str | float) -> Message:
        config = ConfigRecord(dict(first.content["config"]) | changed)
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        message = Message(RecordDict({"config": config, "arrays": record}), dst_node_id=node, message_type=TRAIN)
        return grid._reply(message)

    sent = {name: array.numpy() for name, array in first.content["arrays"].items()}
    again = ask(sent).content["arrays"]
    assert {name: array.data for name, array in again.items()} == {
        name: array.data for name, array in before.content["arrays"].items()
    }
    assert ask({name: array + 1 for name, array in sent.items()}).error.reason == REFUSED
    assert ask(sent, **{"learning-rate": rules.training.learning_rate_min}).error.reason == REFUSED
    assert ask(sent, run="another").error.reason == REFUSED
    [key] = grid.members[node].folder.rglob("noise.key")
    key.unlink()
    assert ask(sent).error.reason == FAILED
    assert not key.exists()


def test_a_link_that_asks_each_site_in_each_round_gets_no_more_answers_than_epsilon_counts(rules: SiteRules) -> None:
    privacy = Privacy("local", 2.0, delta=1e-3)
    federation = Federation(rounds=20, clients=8, fraction=0.25, seed=3)
    local = rules.model_copy(update={"privacy": privacy, "federation": federation})
    rate = rules.training.learning_rate_max
    answered = [
        [number for number in range(1, 21) if local.ask(TRAIN, number, rate, site=site, last=False)]
        for site in range(8)
    ]
    assert max(map(len, answered)) == Accountant(privacy, federation).most_participations(20) < 20
    for number in range(1, 21):
        assert [site for site in range(8) if number in answered[site]] == draw_clients(federation, number)
    # Of a secret key's draws a site knows nothing.
    central = local.model_copy(update={"privacy": Privacy("central", 2.0, delta=1e-3)})
    assert all(central.ask(TRAIN, 1, rate, site=site, last=False) for site in range(8))


def test_a_site_does_not_train_in_a_round_that_it_is_not_drawn_for_nor_with_its_own_noise_under_two_numbers(
    tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    from fl.server_app import round_config
    from fl.site_app import NotAgreed

    rules = tiny_rules(tiny_model, Layout(tmp_path / "link"), privacy={"noise": "local", "delta": 1e-3})
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    member = grid.members[101]
    asked = {**round_config(job, 1, 1e-3), "clipping-norm": rules.privacy.clipping_norm}
    [absent] = set(range(3)) - set(drawn := draw_clients(rules.federation, 1))
    member.admit(rules.text(), absent)
    with pytest.raises(NotAgreed, match="not in the rules"):
        member.expect(TRAIN, asked)
    for number in drawn:
        member.admit(rules.text(), number)
        member.expect(TRAIN, asked)
    member.training_on(asked, {})
    member.admit(rules.text(), drawn[0])
    with pytest.raises(NotAgreed, match="under another number"):
        member.training_on(asked, {})


@pytest.mark.parametrize("fault", ["shape", "bytes", "type", "name"])
def test_a_message_with_an_array_that_is_none_is_refused_and_the_site_goes_on(
    fault: str, ran: tuple[SiteGrid, Path]
) -> None:
    grid, _ = ran
    [message, *_] = [message for message in grid.asked if message.metadata.message_type == TRAIN]
    arrays = dict(message.content["arrays"].items())
    name, good = next(iter(arrays.items()))
    bad = {
        "shape": Array(good.dtype, (1 << 44,), good.stype, good.data),
        "bytes": Array(good.dtype, good.shape, good.stype, b"\x93NUMPY\x01\x00" + good.data[:40]),
        "type": Array("object", good.shape, good.stype, good.data),
        "name": good,
    }[fault]
    content = RecordDict({"config": message.content["config"]})
    content["arrays"] = ArrayRecord({**arrays, "more" if fault == "name" else name: bad})
    node = message.metadata.dst_node_id
    assert grid._reply(Message(content, dst_node_id=node, message_type=TRAIN)).error.reason == FAILED
    assert not grid._reply(message).has_error()


@pytest.mark.parametrize("fault", ["", "name", "zeros", "base"])
def test_bases_from_a_gradient_come_from_the_first_site_and_must_be_bases(
    fault: str, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    tuning = {"kind": "sb", "rank": 2}
    rules = tiny_rules(tiny_model, Layout(tmp_path / "link"), tuning=tuning, scoring={"scored_rounds": "last"})
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    honest = grid.send_and_receive

    def sent(messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = honest(messages, timeout=timeout)
        for reply in replies if replies[0].metadata.message_type == ADAPTER else []:
            arrays = reply.content["arrays"]
            place = {"zeros": "lora_R", "base": "lora_A", "name": "lora_B"}.get(fault, "none")
            for name in [name for name in arrays if place in name][:1]:
                changed = arrays[name].numpy() + np.float32(0.1)
                arrays["more" if fault == "name" else name] = Array(changed)
        return replies

    grid.send_and_receive = sent  # type: ignore[method-assign]
    if fault:
        with pytest.raises(BadReply, match="mend the site that is number 0"):
            run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
        assert committed_rounds(job.run_folder) == []
        return
    run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    assert [each.metadata.dst_node_id for each in grid.asked if each.metadata.message_type == ADAPTER] == [101]
    assert len(committed_rounds(job.run_folder)) == 3


def test_a_reply_that_holds_more_than_was_asked_for_does_not_leave_the_site(
    ran: tuple[SiteGrid, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = ran
    [message, *_] = [message for message in grid.asked if message.metadata.message_type == TRAIN]
    honest = client_app.train

    def leaking(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        arrays = reply.content["arrays"]
        name = next(iter(arrays))
        arrays[{"more": "more", "fewer": name}.get(how, name)] = Array(np.zeros(3, np.float32))
        if how == "fewer":
            del arrays[name]
        return reply

    monkeypatch.setattr(client_app, "train", leaking)
    for how in ("more", "fewer", "other shape"):
        assert grid._reply(message).error.reason == FAILED, how


def test_a_site_whose_numbers_cannot_be_is_not_judged_and_the_rounds_go_on(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    honest = grid._reply

    def odd(message: Message) -> Message:
        reply = honest(message)
        if message.metadata.dst_node_id == 102 and message.metadata.message_type == JUDGE:
            reply.content["metrics"]["partition"] = 1.0
        return reply

    grid._reply = odd  # type: ignore[method-assign]
    run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    assert [(row["round"], row["partition"]) for row in read_numbers(job.run_folder)] == [
        (number, partition) for number in (1, 2) for partition in (0, 2)
    ]
    unjudged = [event for event in read_events(job.run_folder)[0] if event["event"] == "unjudged"]
    assert [event["site"] for event in unjudged] == ["south", "south"]
    assert "partition as 1.0, which is no count" in unjudged[0]["reason"]


def test_a_site_that_does_not_answer_does_not_keep_the_others_from_joining(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    pull = grid.pull_messages

    def pulled(message_ids: Iterable[str]) -> list[Message]:
        return pull(each for each in message_ids if grid._arrived[each].metadata.src_node_id != 102)

    grid.pull_messages = pulled  # type: ignore[method-assign]
    with pytest.raises(LostClients, match=r"1 of 3 sites do not take part \(south: no answer\)"):
        run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    joined = [event["site"] for event in read_events(job.run_folder)[0] if event["event"] == "joined"]
    assert sorted(joined) == ["north", "west"]


def test_rounds_begin_with_as_many_sites_as_they_need_and_others_take_part_once_they_are_there(
    tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    federation = {"clients": 3, "fraction": 1.0, "rounds": 2, "min_replies": 2}
    rules = tiny_rules(tiny_model, Layout(tmp_path / "link"), federation=federation)
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    grid.online.remove(102)
    nodes = grid.get_node_ids

    def come() -> list[int]:
        if committed_rounds(job.run_folder)[-1].number == 1:
            grid.online.add(102)
        return nodes()

    grid.get_node_ids = come  # type: ignore[method-assign]
    run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    events = read_events(job.run_folder)[0]
    assert [event["clients"] for event in events if event["event"] == "committed"] == [2, 3]
    assert [event["sites"] for event in events if event["event"] == "without"] == [["south"]]


def test_a_link_that_begins_again_before_the_first_round_does_not_ask_for_the_untrained_adapter_to_be_judged(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    grid.online.remove(102)
    with pytest.raises(LostClients, match="1 of 3 sites do not take part"):
        run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    assert [found.number for found in committed_rounds(job.run_folder)] == [0]
    grid.online.add(102)
    run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    judged = [message for message in grid.asked if message.metadata.message_type == JUDGE]
    assert {message.content["config"]["round"] for message in judged} == {1, 2}
    assert not [event for event in read_events(job.run_folder)[0] if event["event"] == "unjudged"]


def test_a_link_gives_up_a_round_that_goes_on_for_longer_than_its_patience(
    rules: SiteRules, tiny_model: Path, tmp_path: Path
) -> None:
    class Running:
        """A link whose run never ends."""

        def state(self, number: int) -> RunState:
            return RunState("running", "", "")

    issue(tmp_path / "certs", list(NAMES))
    settings = LinkSettings(certs=tmp_path / "certs" / "link", patience=60.0)
    run = LinkRun(rules, settings, Layout(tmp_path / "home"), print, tiny_model)
    run.folder.mkdir(parents=True)
    run._flower_run = 1
    append_event(run.folder, "round", round=3, clients=[0, 2], learning_rate=1e-3)
    run._begun -= 50
    assert not run._step(Running())  # type: ignore[arg-type]
    run._begun -= 20
    append_event(run.folder, "judged", round=2, sites=3)
    assert not run._step(Running())  # type: ignore[arg-type]
    run._begun -= 70
    append_event(run.folder, "judged", round=2, sites=0)  # which no site did
    with pytest.raises(LostClients, match="No new round for 60 seconds; the last news: round 2: judged by 0 sites"):
        run._step(Running())  # type: ignore[arg-type]


def test_an_error_at_a_site_leaves_it_without_its_words(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "secret-name.log"
    broken.write_text("a line that is not of the form, with the secret 4711\n" * 50)
    grid, job = _fresh(rules, tiny_model, [broken, *logs[1:]], tmp_path)
    with pytest.raises(LostClients, match=FAILED):
        run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]
    [reply] = [reply for reply in grid.replies if reply.has_error()]
    assert reply.error.reason == FAILED
    words = str(grid.members[101].refusal)
    assert "50 of 50 lines" in words
    [rejects] = (tmp_path / "homes").rglob("*rejects/*.parquet")
    assert str(rejects) in words


def test_a_site_is_who_its_key_says_and_not_who_it_says(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, job = _fresh(rules, tiny_model, logs, tmp_path)
    honest = grid._reply

    def claiming(message: Message) -> Message:
        reply = honest(message)
        if message.metadata.dst_node_id == 102 and "metrics" in reply.content:
            reply.content["metrics"]["partition"] = 0
        return reply

    grid._reply = claiming  # type: ignore[method-assign]
    with pytest.raises(FederationError, match="south: it says that it is number 0, not 1"):
        run_rounds(grid, job, federation_of(rules, tiny_model))  # type: ignore[arg-type]


def test_a_message_of_an_unknown_kind_is_refused(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, _ = _fresh(rules, tiny_model, logs, tmp_path)
    [reply] = grid.send_and_receive([Message(RecordDict(), dst_node_id=101, message_type="query.steal")])
    assert reply.error.reason == FAILED


@pytest.mark.parametrize("name", ["sha256", "tokenizer_sha256"])
def test_another_base_model_or_tokenizer_than_the_rules_name_is_refused(
    name: str, rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, _ = _fresh(rules, tiny_model, logs, tmp_path)
    other = rules.model_copy(update={"model": rules.model.model_copy(update={name: "0" * 64})})
    grid.agreed = {other.sha256}
    with pytest.raises(FederationError, match="give the right directory with --model"):
        grid.members[101].admit(other.text(), 0)
    assert not list((tmp_path / "homes" / "north").rglob("*.parquet"))


def test_rules_that_this_program_does_not_know_are_refused(
    rules: SiteRules, tiny_model: Path, logs: list[Path], tmp_path: Path
) -> None:
    grid, _ = _fresh(rules, tiny_model, logs, tmp_path)
    more = json.dumps({**json.loads(rules.text()), "send": "everything"})
    spaced = json.dumps(json.loads(rules.text()), indent=1)
    for text in (more, spaced, "not JSON"):
        with pytest.raises(FederationError, match="install the link's version"):
            grid.members[101].admit(text, 0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"logs": "missing.log"}, "no file missing.log"),
        ({"logs": "."}, "is a folder"),
        ({"logs": "logs.tar"}, "is an archive"),
        ({"dataset": "nginx.toml"}, "Cannot read the dataset file nginx.toml"),
        ({"output": Path("alerts.txt")}, "should end in"),
        ({"watch": ("gone.log",)}, "no file gone.log"),
        ({"certs": Path("nowhere")}, r"holds no ca\.crt"),
    ],
)
def test_what_is_wrong_at_a_site_is_told_before_it_connects(
    given: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tarfile

    monkeypatch.chdir(tmp_path)
    issue(tmp_path / "certs", ["north"])
    (tmp_path / "good.log").write_text("081109 203615 148 INFO dfs.DataNode: a line\n")
    with tarfile.open("logs.tar", "w") as tar:
        tar.add("good.log")
    good = {"name": "north", "logs": "good.log", "dataset": "hdfs", "link": "127.0.0.1:1"}
    settings = SiteSettings(**{**good, "certs": tmp_path / "certs" / "sites" / "north", "wait": 0.0, **given})
    with pytest.raises(DataError, match=told):
        run_site(settings, Layout(tmp_path), lambda *_: True, print)


def test_a_link_that_is_not_there_is_told_after_the_time_given(tmp_path: Path) -> None:
    issue(tmp_path / "certs", ["north"])
    log = tmp_path / "good.log"
    log.write_text("081109 203615 148 INFO dfs.DataNode: a line\n")
    certs = tmp_path / "certs" / "sites" / "north"
    settings = SiteSettings("north", str(log), "hdfs", "127.0.0.1:1", certs, wait=0.0)
    with pytest.raises(LinkLost, match="cannot be reached"):
        run_site(settings, Layout(tmp_path), lambda *_: True, print)


def test_sites_keep_to_the_privacy_that_they_agreed_to_whatever_the_link_asks(
    tiny_model: Path, logs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fl.site_app import NotAgreed
    from flows.site_member import _expected

    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "detecting"))
    privacy = {"noise": "central", "clipping": "adaptive", "clipping_norm": 0.01, "count_noise": 1.0, "delta": 1e-3}
    private = tiny_rules(tiny_model, Layout(tmp_path / "link"), privacy=privacy, scoring={"scored_rounds": "last"})
    grid, job = _fresh(private, tiny_model, logs, tmp_path)
    run_rounds(grid, job, federation_of(private, tiny_model))  # type: ignore[arg-type]
    told = [found.facts["privacy"] for found in committed_rounds(job.run_folder)[1:]]
    assert told[0]["epsilon"] < told[1]["epsilon"]
    assert told[0]["clipping_norm"] == 0.01 != told[1]["clipping_norm"] == told[0]["next_clipping_norm"]
    trained = [reply.content["metrics"] for reply in grid.replies if reply.metadata.message_type == "train"]
    assert {int(metrics["unclipped"]) for metrics in trained} <= {0, 1}
    member = grid.members[101]
    asked = {**_expected(private), "round": 1, "learning-rate": private.training.learning_rate_max}
    member.expect(TRAIN, {**asked, "clipping-norm": 0.3})
    for changed in ({"clipping-norm": 0.0}, {"clipping-norm": float("inf")}, {"clipping-norm": "0.3"}):
        with pytest.raises(NotAgreed, match="another clipping norm"):
            member.expect(TRAIN, asked | changed)
    louder = json.dumps(json.loads(str(asked["privacy"])) | {"noise_multiplier": 0.0})
    for less in (asked | {"privacy": louder}, {name: value for name, value in asked.items() if name != "privacy"}):
        with pytest.raises(NotAgreed, match="asks for other privacy"):
            member.expect(TRAIN, less)
