"""Detection on raw logs: the same alerts however the log comes, what is told of them, and what stays where it is."""

# ruff: noqa: F401 (fixtures are imported)
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from mlflow_session import write_detector
from prefect_session import prefect_api

from flows.detect import page_text
from storage.alerts import FoundAlert
from storage.datasets import DatasetConfig, resolve
from storage.detection import DetectConfig, Outcome
from storage.drift import Verdict
from storage.hdfs_generator import generate
from storage.judging import Judge
from storage.layout import Layout
from storage.log_inputs import Piece, follow_file
from storage.masks import MaskRules, mask_log
from storage.normal_windows import write_normal_windows
from storage.summaries import SurprisingMessage
from storage.tokens import TokenRule, tokenize_windows
from storage.windows import window_log
from tasks.detect_anomalies import detect_anomalies

NEW = (
    "081111 235959 99 WARN dfs.DataNode$DataXceiver: The disk is on fire near blk_77 and blk_78 and nobody has come to "
    "put it out, so that the replicas on this rack will be lost within minutes; copy whatever can still be read\n"
)
"""Long, since an untrained model finds long messages the most surprising."""


def prepared(log: Path, into: Path, model: Path) -> Path:
    """The tokenize stage's folder of a log."""
    spec = resolve(DatasetConfig(name="hdfs-sim")).model_copy(update={"label_file": None})
    for name in ("window", "mask", "tokenize"):
        (into / name).mkdir(parents=True)
    window_log(log, spec, spec.window, None, into / "window")
    mask_log(log, into / "window", spec, MaskRules(preset="hdfs"), into / "mask")
    tokenize_windows(into / "window", into / "mask", model / "tokenizer.json", TokenRule(), into / "tokenize")
    return into / "tokenize"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """A home with a detector (`detector`) calibrated on one log, and another log (`new.log`) with two new messages."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATALAIA_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, seed in (("old", 1), ("new", 2)):
            generate(folder / name, blocks=60, seed=seed)
        (folder / "new.log").write_text((folder / "new" / "HDFS.log").read_text() + NEW)
        detector = write_detector(folder / "detector", tiny_model, Layout(folder / "home"), score="max_message")
        _calibrate(detector, folder / "old" / "HDFS.log", tiny_model)
        yield folder


def _calibrate(detector: Path, log: Path, model: Path) -> None:
    tokenized = prepared(log, detector.parent / "prepared", model)
    judge = Judge(detector)
    [judged] = [judge.judged(windows) for windows in judge.stream().windows(iter([Piece("old", 0, log.read_bytes())]))]
    judged.select("sequence_hash", "score").write_parquet(detector / "calibration_scores.parquet")
    splits = pl.read_parquet(tokenized / "windows.parquet", columns=["window_id"])
    halves = pl.when(pl.col("window_id") % 2 == 0).then(pl.lit("calibration")).otherwise(pl.lit("train"))
    splits.with_columns(split=halves).write_parquet(detector.parent / "window_scores.parquet")
    write_normal_windows(detector, tokenized, detector.parent / "window_scores.parquet")
    facts = json.loads((detector / "detector.json").read_text())
    (detector / "detector.json").write_text(json.dumps(facts | {"threshold": float(judged["score"].median() or 0)}))


def detected(place: Path, *files: Path | str, **settings: object) -> Outcome:
    settings = {"files": tuple(map(str, files)), "model": str(place / "detector"), **settings}
    return detect_anomalies(DetectConfig.model_validate(settings))


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alerts_are_those_windows_that_score_above_the_threshold_in_the_stages(
    place: Path, tmp_path: Path, tiny_model: Path
) -> None:
    from fl.adapter import attach_adapter, load_adapter_arrays, read_adapter
    from fl.hyperparameters import Tuning
    from fl.model import load_model
    from fl.scoring import score_sequences

    outcome = detected(place, place / "new.log", output=str(tmp_path / "a.jsonl"))
    tokenized = prepared(place / "new.log", tmp_path / "prepared", tiny_model)
    sequences = pl.read_parquet(tokenized / "sequences.parquet")
    loaded = load_model(next((place / "home" / "models").iterdir()))
    model = attach_adapter(loaded, Tuning(rank=2), 7)
    load_adapter_arrays(model, read_adapter(place / "detector" / "adapter.safetensors"))
    columns = score_sequences(
        model,
        loaded,
        [r.to_numpy() for r in sequences["token_ids"]],
        [r.to_numpy() for r in sequences["message_starts"]],
    )
    scored = sequences.select("sequence_id", pl.Series("score", columns["max_message"]))
    windows = pl.read_parquet(tokenized / "windows.parquet").join(scored, on="sequence_id")
    threshold = json.loads((place / "detector" / "detector.json").read_text())["threshold"]
    expected = dict(windows.filter(pl.col("score") > threshold + 1e-3).select("key", "score").iter_rows())
    alerts = {str(row["window"]): row["score"] for row in rows(tmp_path / "a.jsonl")}
    assert alerts == pytest.approx(expected, abs=1e-4)
    assert 2 < len(alerts) < outcome.windows == windows.height == 62


def test_a_log_gives_the_same_alerts_however_it_comes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (place / "new.log").read_bytes()
    cut = data.rfind(b"\n", 0, len(data) // 2) + 1
    (tmp_path / "new.log.gz").write_bytes(gzip.compress(data))
    (tmp_path / "new.log.zst").write_bytes(pa.compress(data, codec="zstd", asbytes=True))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "app.log").write_bytes(data[cut:])
    (tmp_path / "folder" / "app.log.1.gz").write_bytes(gzip.compress(data[:cut]))
    reading, writing = os.pipe()
    os.write(writing, gzip.compress(data))
    os.close(writing)
    monkeypatch.setattr("sys.stdin", os.fdopen(reading, "rb"))
    found = {}
    for name in (place / "new.log", tmp_path / "new.log.gz", tmp_path / "new.log.zst", tmp_path / "folder", "-"):
        detected(place, name, output=str(tmp_path / "a.jsonl"), explain=0)
        found[name] = [(r["window"], r["score"], [x["text"] for x in r["raw"]]) for r in rows(tmp_path / "a.jsonl")]  # type: ignore[attr-defined]
    plain, *others = found.values()
    assert all(other == plain for other in others)
    assert plain


def test_an_alert_says_how_unusual_it_is_why_and_where_its_lines_are(place: Path, tmp_path: Path) -> None:
    outcome = detected(place, place / "new.log", output=str(tmp_path / "a.jsonl"), explain=1000)
    alerts = {str(row["window"]): row for row in rows(tmp_path / "a.jsonl")}
    lines = (place / "new.log").read_text().splitlines()
    for row in alerts.values():
        assert row["raw"] == [
            {"file": str(place / "new.log"), "line": number, "text": text}
            for number, text in enumerate(lines, 1)
            if str(row["window"]) in text.replace("/", " ").replace(".", " ").split()
        ]
        texts = [reason["text"] for reason in row["reasons"]]  # type: ignore[index, attr-defined]
        assert texts and not any(str(row["window"]) in text for text in texts)
    calibration = np.sort(pl.read_parquet(place / "detector" / "calibration_scores.parquet")["score"].to_numpy())
    worst = outcome.shown[0]
    assert worst.higher_than == pytest.approx((calibration < worst.score).mean())
    [reason] = [r for r in (alerts["blk_77"]["reasons"] or []) if "on fire" in r["text"]]  # type: ignore[attr-defined]
    assert reason["usual"] is None and reason["token"]


def test_windows_seen_before_are_looked_up(place: Path, tmp_path: Path) -> None:
    detected(place, place / "new.log")
    again = detected(place, place / "new.log")
    assert again.computed == 0
    # The calibration windows' scores came with the detector.
    assert detected(place, place / "old" / "HDFS.log").computed == 0


def test_new_messages_are_told_and_the_verdict_lies_in_the_home(place: Path) -> None:
    outcome = detected(place, place / "new.log", explain=0)
    [(message, lines)] = [each for each in outcome.new_messages.items() if "on fire" in each[0]]
    assert message.startswith("The disk is on fire near blk_<*> and blk_<*> and")
    assert lines == 2
    assert not outcome.verdict.retrain
    panic = place / "panic.log"
    panic.write_text("".join(NEW.replace("blk_77 and blk_78", f"blk_{number}") for number in range(40)))
    outcome = detected(place, panic, explain=0)
    assert {measure.name for measure in outcome.verdict.measures if measure.sure} >= {"unseen"}
    assert Verdict.model_validate_json(Path(outcome.verdict_file).read_text()) == outcome.verdict
    assert outcome.verdict.retrain


def test_a_growing_log_is_judged_as_its_sessions_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (place / "new.log").read_text().splitlines(keepends=True)
    log = tmp_path / "app.log"
    log.write_text("")
    parts = [whole[:500], whole[500:900], whole[900:]]

    def wait(seconds: float) -> None:
        if not parts:
            raise KeyboardInterrupt
        with log.open("a") as file:
            file.writelines(parts.pop(0))

    monkeypatch.setattr("tasks.detect_anomalies.follow_file", lambda path: follow_file(path, wait))
    outcome = detected(place, log, follow=True, gap=3600, output=str(tmp_path / "a.jsonl"), explain=0)
    assert outcome.lines == len(whole)
    assert outcome.left_open > 0
    assert outcome.windows + outcome.left_open >= 62
    assert len(rows(tmp_path / "a.jsonl")) == outcome.added > 0


def test_windows_that_have_ended_are_judged_though_others_are_left_open(place: Path) -> None:
    outcome = detected(place, place / "new.log", leave_open=True, explain=0)
    assert outcome.windows > 30
    assert outcome.left_open > 0


def test_the_page_does_not_call_a_log_usual_of_which_nothing_was_judged(place: Path, tmp_path: Path) -> None:
    begun = tmp_path / "app.log"
    begun.write_text(NEW)
    text = page_text(detected(place, begun, leave_open=True))
    assert "No window was judged. 2 windows may still grow and were left for the next time." in text
    assert "are like those" not in text


@pytest.mark.usefixtures("prefect_api")
def test_the_flow_returns_a_verdict_and_tells_prefect_no_raw_line(place: Path, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    from flows.detect import detect

    output = tmp_path / "a.parquet"
    found = detect(DetectConfig(files=(str(place / "new.log"),), model=str(place / "detector"), output=str(output)))
    assert (found["retrain"], found["windows"], found["added"]) == (False, 62, pl.read_parquet(output).height)
    with get_client(sync_client=True) as client:
        artifacts = [each for each in client.read_artifacts() if each.key == "detection"]
        told = "\n".join(
            each.model_dump_json() for each in [*client.read_flow_runs(), *client.read_task_runs(), *client.read_logs()]
        )
    assert artifacts and "on fire" in str(artifacts[0].data)
    told += "\n".join(each.model_dump_json() for each in artifacts)
    words = {word.strip("/:,") for line in (place / "new.log").read_text().splitlines() for word in line.split()}
    private = {word for word in words if word.startswith(("blk_", "10.25"))}
    assert len(private) > 60
    assert not [word for word in private if word in told]


def command(place: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Status, stdout and stderr of `atalaia detect`, in this process."""
    from flows.cli import main

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("flows.server.quiet_environment", lambda layout: None)
        patch.setattr(sys, "argv", ["atalaia", "detect", *arguments])
        main()
    told = capsys.readouterr()
    return int(caught.value.code or 0), told.out, told.err


def test_the_command_tells_alerts_with_reasons_raw_lines_and_drift(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = command(place, str(place / "new.log"), "--model", str(place / "detector"), capsys=capsys)
    told = " ".join(out.split())
    assert status == 0
    assert "of 62 windows" in told and "calibration windows" in told and "new.log:" in told and "nats" in told
    assert "No need to train anew." in told


def test_alerts_fail_the_command_only_where_that_is_asked_for_and_json_is_alone_on_stdout(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", str(place / "detector"))
    status, out, err = command(
        place, str(place / "new.log"), *model, "--json", "--fail-on-alerts", "--explain", "0", capsys=capsys
    )
    assert status == 1
    assert all(json.loads(line)["detector"] for line in out.splitlines())
    assert "No need to train anew." in err


def test_messages_with_backticks_and_tags_stay_text_on_the_runs_page() -> None:
    bad = "a ` <img src=x onerror=alert(1)> `` b <*>"
    reason = SurprisingMessage(text=bad, surprise=1, position=1)
    alert = FoundAlert.model_construct(
        score=1.0, higher_than=None, calibration_windows=0, lines=3, reasons=[reason], sequence_hash="x"
    )
    verdict = Verdict.model_construct(windows=1, alerts=1, measures=[], retrain=False)
    outcome = Outcome.model_construct(
        detector="d", why="w", verdict=verdict, new_messages={bad: 2}, shown=[alert], alike={"x": 1}, left_open=0
    )
    parts = [part for token in MarkdownIt("commonmark").parse(page_text(outcome)) for part in token.children or []]
    assert [part.content for part in parts if part.type == "code_inline"] == [bad, bad]
    assert "html_inline" not in {part.type for part in parts}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nowhere.log",), "no file nowhere.log"),
        (("empty.log",), "empty"),
        (("web.log",), "not of the form"),
        (("cut.gz",), "damaged or cut off"),
        (("new.log", "--output", "a.txt"), ".jsonl, .csv or .parquet"),
        (("new.log", "--output", "nowhere/a.csv"), "No such file"),
        (("new.log", "--model", "a b@c"), "names no detector|No detector is registered"),
        (("new.log", "--run", "none-1"), "no detector of a run"),
        (("new.log", "--gap", "-3"), "gap"),
        (("new.log", "web.log", "--follow"), "Only one log"),
        (("new.log", "--json", "--output", "a.csv"), "--json"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: tuple[str, ...],
    complaint: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    (place / "empty.log").write_text("\n")
    (place / "web.log").write_text("GET /index.html\n" * 30)
    (place / "cut.gz").write_bytes(gzip.compress((place / "new.log").read_bytes())[:-20])
    model = () if {"--model", "--run"} & set(arguments) else ("--model", str(place / "detector"))
    status, out, err = command(place, *arguments, *model, capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert any(part in err for part in complaint.split("|")), err
