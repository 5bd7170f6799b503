"""Reports say what the summary says: in the terminal, in Markdown, in HTML and in the row of a run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fl.evaluation import evaluate
from fl.metrics_table import Windows
from flows.settings import run_config
from storage import figures
from storage.errors import FormatError
from storage.report_contents import tables
from storage.report_tables import (
    NONE,
    Percent,
    Table,
    cell_text,
    markdown_table,
    markdown_text,
    privacy_table,
    score_table,
)
from storage.report_words import code_span
from storage.reports import html_report, markdown_report, terminal_text, title, write_report
from storage.summaries import (
    Alert,
    DataFacts,
    PrivacyFacts,
    RunFacts,
    Summary,
    SurprisingMessage,
    TrainingFacts,
    load_summary,
    run_row,
    score_name,
)
from storage.verdicts import headline, who_catches, with_few_windows

ROW = [
    "run_id", "preset", "dataset", "split", "model", "tuning", "rank", "seed", "rounds", "status", "score", "k",
    "prevalence", "label_free", "validated", "oracle", "auroc", "average_precision", "best_rule",
    "bytes_up_per_client_round", "bytes_down_per_client_round", "train_seconds", "score_seconds",
]  # fmt: skip
RUN = RunFacts(
    run_id="r1",
    preset="demo",
    dataset="hdfs-sim",
    split="random",
    model="smollm2-135m-instruct",
    tuning="lora",
    rank=8,
    seed=3,
    rounds=1,
    clients=4,
    clients_per_round=2,
    status="finished",
    started="2026-11-21T21:00:00Z",
    command="atalaia run demo seed=3",
    config={"tuning": {"rank": 8}},
    versions={"torch": "2.13.0"},
    hardware={"cores": "2"},
    reasons={"dtype": "float32, CPU without bfloat16 units"},
)
DATA = DataFacts(lines=5000, windows=400, distinct_windows=6, messages=10, anomalies=20, tokens=9000)
TRAINING = TrainingFacts(
    trainable_parameters=460_800,
    full_parameters=134_515_008,
    bytes_down_per_client_round=2_000_000,
    bytes_up_per_client_round=2_000_000,
    full_model_bytes=538_000_000,
    client_rounds=2,
    examples=64,
    tokens=30_000,
    computed_tokens=10_000,
    train_seconds=90,
    score_seconds=30,
)
ALERT = Alert(
    window_id=17,
    score=2.5,
    label=1,
    kind="write failed <at> beginning",
    flagged=True,
    windows=3,
    lines=2,
    messages=[
        SurprisingMessage(
            text="Receiving block blk_<*> | [x]",
            surprise=9.31,
            position=2,
            usual=1.21,
            token=" ask",
            token_surprise=9.0,
            token_usual=2.0,
            expected=" Name",
        )
    ],
    compared_sequences=12,
    compared_windows=90,
)


def _findings(known: bool = True, rounds: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    sequence = generator.integers(0, 4, 400)
    split = np.repeat(["train", "calibration", "validation", "test"], 100)
    bad = np.isin(split, ("validation", "test")) & (generator.random(400) < 0.1)
    sequence[bad] = generator.integers(4, 6, int(bad.sum()))
    label = bad.astype(np.int8) if known else np.full(400, -1, np.int8)
    surprise = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 1.0])
    kind = np.array(["odd <kind>" if b else None for b in bad], dtype=object)
    flat, lengths = np.repeat(sequence, 2).astype(np.uint32), np.full(400, 2)
    scores = {
        number: {"rarity": surprise[order], "top_1": 1 - surprise, "loss_sum": surprise, "loss_tokens": np.ones(6)}
        for number, order in ((0, generator.permutation(6)), (1, np.arange(6)))
        if number in rounds
    }
    return evaluate(Windows(sequence, split, label, flat, lengths, kind), scores).findings


def _summary(**changes: Any) -> Summary:  # noqa: ANN401
    values = {"run": RUN, "data": DATA, "training": TRAINING, "findings": _findings(), "alerts": [ALERT]}
    return Summary(**{**values, "next_commands": ["atalaia query --view rounds"], **changes})


class _Page(HTMLParser):
    """Collects opened and closed tags, text, and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_row_has_exactly_the_documented_fields() -> None:
    row = _summary().row()
    assert list(row) == ROW
    assert set(row["label_free"]) == {"f1", "precision", "recall", "false_alarm_rate", "threshold"}
    assert set(row["best_rule"]) == {"name", "f1"}
    assert json.loads(json.dumps(row)) == row


def test_a_run_that_has_not_come_to_an_end_has_a_row_too() -> None:
    row = run_row(RUN.model_copy(update={"status": "failed"}), None, None)
    assert list(row) == ROW
    assert row["status"] == "failed"
    assert row["label_free"] is None


def test_a_test_split_that_took_all_that_was_left_is_not_called_natural() -> None:
    findings = _findings()
    splits = {
        "train": {"windows": 500, "anomalies": 0},
        "calibration": {"windows": 200, "anomalies": 0},
        "validation": {"windows": 0, "anomalies": 0},
        "test": {"windows": 300, "anomalies": 30},
        "unused": {"windows": 0, "anomalies": 0},
    }
    said = headline(findings | {"splits": splits})
    assert "natural" not in said
    assert "more frequent than in the log, 10.00 % instead of 3.00 %" in said
    # Anomalous windows that were drawn to train or calibrate with are left out, as many as belong there.
    natural = splits | {"unused": {"windows": 21, "anomalies": 21}}
    assert "at natural prevalence (" in headline(findings | {"splits": natural})


def test_the_headline_is_plain_about_winning_and_losing() -> None:
    findings = _findings()
    assert f"Label-free F1 {findings['label_free']['f1']:.3f} [" in headline(findings)
    assert f"{findings['best_rule']['name']}, has {findings['best_rule']['f1']:.3f}" in headline(findings)
    words = {"better": "The model is better", "worse": "The simple rule is better", "unclear": "cannot tell"}
    for verdict, said in words.items():
        assert said in headline({**findings, "headline": {**findings["headline"], "verdict": verdict}})


def test_what_the_model_adds_is_counted_in_windows() -> None:
    findings = _findings()
    names = ("both", "model_only", "rule_only", "neither", "model_false_alarms", "rule_false_alarms")
    caught = dict(zip(names, range(1, 7), strict=True))
    told = who_catches({**findings, "headline": {**findings["headline"], "caught": caught}})
    assert "both catch 1, the model alone 2, the rule alone 3, neither 4" in told
    assert "5 of the model, 6 of the rule" in told
    assert who_catches(_findings(known=False)) == ""


def test_rules_with_few_windows_have_a_table_where_they_were_fitted() -> None:
    row = {"rule": "unseen sequence", "f1": 0.25, "precision": 0.2, "recall": 1.0, "false_alarm_rate": 0.1}
    few = {"windows": 64, "draws": 10, "rules": [row]}
    assert "as little as the model" not in markdown_report(_summary())
    report = markdown_report(_summary(findings=_findings() | {"rules_with_few_windows": few}))
    assert "| rule: unseen sequence | 0.250 | 0.200 | 1.000 | 10.00 % |" in report
    assert "trained on 64 windows" in report
    assert "Fitted on 64, as many as the model was trained on, the best is unseen sequence with 0.250." in report
    assert with_few_windows(_findings()) == ""


def test_the_summary_survives_its_file(tmp_path: Path) -> None:
    summary = _summary()
    paths = write_report(summary, tmp_path / "new")
    assert load_summary(paths["json"]) == summary
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"report.json", "report.md", "report.html"}


def test_a_missing_or_foreign_summary_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has not finished"):
        load_summary(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"run": 3}')
    with pytest.raises(FormatError, match="cannot be read") as error:
        load_summary(tmp_path / "report.json")
    assert "\n" not in str(error.value)


def test_the_terminal_tells_a_newcomer_everything_the_demo_promises() -> None:
    text = terminal_text(_summary(), width=140)
    for told in (
        "5,000 log lines in 400 windows (20 of them anomalous)",
        "460,800 trained",
        "2.00 MB a message, 8.00 MB in all; full fine-tuning would send 538.00 MB and 2,152.00 MB, 269 times as much",
        "tuned model",
        "untouched model",
        "rule: unseen event-count vector",
        "AUROC",
        "loss",
        "odd <kind>",
        "window 17: score 2.500, flagged; truth: anomalous (write failed <at> beginning)",
        "+8.1 Receiving block blk_<*> | [x]",
        "atalaia query --view rounds",
    ):
        assert told in text, told
    assert headline(_summary().findings)[:40] in text
    assert who_catches(_summary().findings)[:40] in text


def test_the_terminal_fits_eighty_columns() -> None:
    assert max(map(len, terminal_text(_summary(), width=80).splitlines())) <= 80


def test_markdown_tables_are_whole_even_with_bars_and_brackets() -> None:
    made = markdown_table(Table("A", ["name", "share"], [["a|b <*>", Percent(0.00123)], ["c", None]], "note"))
    assert made.splitlines()[2:6] == [
        "| name | share |",
        "| --- | ---: |",
        "| a\\|b &lt;\\*> | 0.12 % |",
        f"| c | {NONE} |",
    ]
    report = markdown_report(_summary())
    for block in re.findall(r"(?:^\|.*\n)+", report, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    picture = figures.partition_sizes([3, 4], tmp_path / "sizes")
    page = _Page(html_report(_summary(), {picture.caption: picture.svg}))
    assert page.open == []
    assert len(page.addresses) == 1
    assert all(address.startswith("data:") for address in page.addresses)
    words = " ".join(page.words)
    for told in ("atalaia run demo seed=3", "2.13.0", "Receiving block blk_<*> | [x]", "odd <kind>", '"rank": 8'):
        assert told in words, told


def test_a_message_cannot_become_markup() -> None:
    bad = ALERT.model_copy(update={"messages": [SurprisingMessage(text="<script>x</script>", surprise=1, position=1)]})
    assert "<script>x" not in html_report(_summary(alerts=[bad]), {})


def test_no_table_is_empty_or_ragged() -> None:
    for table in tables(_summary()):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows), table.title


def test_every_score_has_a_row_before_and_after_training_and_the_one_that_decides_is_starred() -> None:
    table = score_table(_summary())
    words = score_name({"score": "rarity", "k": None})
    assert [row[0] for row in table.rows] == [f"{words} *", "tokens outside the top 1"]
    assert len(table.columns) == 7
    untouched = score_table(_summary(findings=_findings(rounds=(0,))))
    assert (untouched.title, len(untouched.columns)) == ("Every score", 4)
    assert not score_table(_summary(findings=_findings(known=False))).rows


@pytest.mark.parametrize("draw", [terminal_text, markdown_report, lambda summary: html_report(summary, {})])
def test_logs_without_labels_and_models_without_training_are_reported_as_such(draw: Any) -> None:  # noqa: ANN401
    untouched = TRAINING.model_copy(
        update={"client_rounds": 0, "trainable_parameters": 0, "bytes_up_per_client_round": 0}
    )
    summary = _summary(
        run=RUN.model_copy(update={"tuning": "none", "rank": None}),
        data=DATA.model_copy(update={"anomalies": None}),
        training=untouched,
        findings=_findings(known=False),
        alerts=[ALERT.model_copy(update={"label": None, "kind": None})],
    )
    text = " ".join(draw(summary).split())
    assert "no labels" in text
    assert "truth: no label" in text
    assert "cannot be told" in text
    assert title(summary).startswith("hdfs-sim, smollm2-135m-instruct, untouched")


def test_each_unusual_message_tells_its_token_and_what_was_expected_there() -> None:
    text = " ".join(terminal_text(_summary(), width=80).split())
    assert '+8.1 Receiving block blk_<*> | [x] "ask" (9.0 nats, usually 2.0), expected "Name"' in text
    assert "median of the same message in 90 normal calibration windows (12 distinct ones)" in text
    by_token = ALERT.model_copy(update={"by_token": True})
    assert "+7.0 Receiving block" in terminal_text(_summary(alerts=[by_token]))
    assert '`Receiving block blk_<*> | [x]`; "ask" (9.0 nats' in markdown_report(_summary())
    assert "expected &quot;Name&quot;" in html_report(_summary(), {})


def test_reports_of_before_tell_the_surprise_alone() -> None:
    old = SurprisingMessage(text="a message", surprise=9.31, position=2)
    text = terminal_text(_summary(alerts=[ALERT.model_copy(update={"messages": [old]})]))
    assert "9.3 a message\n" in text
    assert "usual" not in text.split("what gave them away")[1]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_number_and_no_name_is_cut(width: int) -> None:
    found = _findings()
    worst = {"f1": 0.875, "f1_low": 0.8, "f1_high": 1.0, "precision": 0.778, "recall": 1.0, "false_alarm_rate": 0.2435}
    found["rules"] = [{**rule, **worst} for rule in found["rules"]]
    kind = "Delete a block that no longer exists on data node or anywhere else"
    found["recall_by_kind"] = [{"kind": kind, "windows": 12_345, "recall": 0.125, "best_rule_recall": 0.875}]
    text = terminal_text(_summary(findings=found), width)
    assert "…" not in text
    for rule in found["rules"]:
        first, *_, last = f"rule: {rule['rule']}".split()
        assert re.search(rf"{first} .*0\.875  0\.80–1\.00  0\.778  1\.000  24\.35 %", text)
        assert last in text
    assert re.search(r"12,345  0\.125  0\.875", text)


def test_the_legend_explains_the_headings_and_the_score_with_its_reason() -> None:
    text = " ".join(terminal_text(_summary(), width=80).split())
    for told in (
        "P, precision:",
        "R, recall:",
        "FAR:",
        "AP (average precision)",
        "Loss:",
        "The score that decides is",
        "4.6: one in a hundred",
    ):
        assert told in text, told
    assert _findings()["chosen"] in text
    named = _summary(findings=_findings() | {"chosen": "as configured"})
    assert "the configuration names it (detection.score)" in " ".join(terminal_text(named).split())


def test_an_untouched_model_is_never_called_tuned() -> None:
    summary = _summary(findings=_findings(rounds=(0,)))
    for text in (terminal_text(summary), markdown_report(summary), html_report(summary, {})):
        assert "tuned model" not in text.replace("fine-tuned model", "")
        assert "untouched model" in text
        assert "LoRA" not in text.split("\n### The same again")[0].split("<h2>The same again")[0]


def test_cells_read_well() -> None:
    assert [cell_text(cell) for cell in (None, 1234567, 0.12345, 12345.6, "x", Percent(0.5))] == [
        NONE, "1,234,567", "0.123", "12,346", "x", "50.00 %",
    ]  # fmt: skip


def test_a_private_run_says_what_it_spent_and_any_other_says_nothing() -> None:
    assert not privacy_table(_summary()).rows
    spent = PrivacyFacts(
        noise="central",
        epsilon=2.125,
        known_epsilon=None,
        delta=1e-3,
        holds_for="federations with and without one site",
        clipping_norm=0.5,
        next_clipping_norm=0.5,
    )
    summary = _summary()
    summary = summary.model_copy(update={"training": summary.training.model_copy(update={"privacy": spent})})
    text = markdown_table(privacy_table(summary))
    for told in ("| epsilon spent | 2.125 |", "without bound", "| delta | 0.001 |", "with and without one site"):
        assert told in text


def test_missed_anomalies_are_told_by_detector_by_kind_and_by_their_rarest_messages() -> None:
    rare = {"text": "<script>Lost block</script>", "times": 2, "train_windows": 1500}
    missed = {
        "detectors": [
            {"detector": "tuned model", "anomalies": 8, "missed": 2, "sequences": 5, "missed_sequences": 1},
            {"detector": "rule: unseen sequence", "anomalies": 8, "missed": 0, "sequences": 5, "missed_sequences": 0},
        ],
        "kinds": [{"kind": "lost", "windows": 8, "recall": {"tuned model": 0.75, "rule: unseen sequence": 1.0}}],
        "sequences": [
            {"window": 7, "sequence": 3, "windows": 2, "kind": None, "missed_by": ["tuned model"], "messages": 9}
            | {"rarest": [rare]}
        ],
    }
    summary = _summary(findings=_findings() | {"missed": missed})
    text = markdown_report(summary)
    assert "| tuned model | 2 | 25.00 % | 1 | 5 |" in text
    assert "| lost | 8 | 0.750 | 1.000 |" in text
    assert "Lost block&lt;/script> (x 2, in 1,500 training windows) | tuned model |" in text
    page = html_report(summary, {})
    assert "<script>Lost" not in page
    assert "&lt;script&gt;Lost block" in page


def test_the_rules_are_told_on_never_seen_and_balanced_windows_too() -> None:
    row = {"rule": "unseen sequence", "f1": 0.25, "precision": 0.5, "recall": 0.125, "false_alarm_rate": 0.01}
    row |= {"f1_low": 0.104, "f1_high": 0.4}
    rows = [row | {"population": name} for name in ("all", "unseen", "balanced")]
    text = markdown_report(_summary(findings=_findings() | {"rules_by_population": rows}))
    told = text.split("### The simple rules on other windows")[1].split("###")[0]
    assert told.count("| rule: unseen sequence |") == 2
    assert "| windows whose sequence training never saw | 0.250 | 0.10–0.40 | 0.500 | 0.125 | 1.00 % |" in told


def test_a_run_without_learned_baselines_says_so_and_which_setting_trains_them() -> None:
    told = "none were trained; baselines.methods=deeplog,logbert,fedlog trains them"
    for findings in (_findings(), _findings() | {"baselines": []}):
        summary = _summary(findings=findings)
        assert told in markdown_report(summary).split("### Learned baselines")[1].split("###")[0]
        assert told in html_report(summary, {})
    asked = next(word for word in told.split() if "=" in word)
    assert run_config("demo", [asked]).baselines.methods == ("deeplog", "logbert", "fedlog")


def test_masks_in_a_markdown_text_are_no_emphasis_and_no_tags() -> None:
    assert markdown_text('"<*>" (2.0 nats), expected "_<*>"') == r'"&lt;\*>" (2.0 nats), expected "\_&lt;\*>"'


HOSTILE = st.text(alphabet="`*_<>[]()!&|~\\#; ab/=\n", max_size=30)
"""What begins markup in CommonMark, and what belongs to it."""


def _inline(text: str) -> list[tuple[str, str]]:
    """The parts of all lines of a Markdown text by kind, with their contents, as a strict renderer reads them."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [(part.type, part.content) for token in parser.parse(text) for part in token.children or []]


@given(HOSTILE)
def test_a_code_span_is_its_text_whatever_stands_in_it(text: str) -> None:
    told = text.replace("\n", " ") or " "
    shown = _inline(f"- 1: {code_span(text)}; then `more` *x*")
    assert shown[:4] == [("text", "1: "), ("code_inline", told), ("text", "; then "), ("code_inline", "more")]


@given(HOSTILE)
def test_a_cell_is_its_text_whatever_stands_in_it(text: str) -> None:
    shown = _inline(markdown_table(Table("title", ["one", "two"], [[f"a{text}b", "c"]])))
    cells = [content for kind, content in shown if kind == "text"]
    assert {kind for kind, _ in shown} == {"text"}
    assert cells == ["title", "one", "two", f"a{text}b".replace("\n", " "), "c"]


def test_messages_with_backticks_and_tags_stay_text_in_a_report() -> None:
    bad = "a ` <img src=x onerror=alert(1)> `` __init__ took <*> of <*> ms"
    alert = ALERT.model_copy(update={"messages": [SurprisingMessage(text=bad, surprise=1, position=1)], "kind": bad})
    shown = _inline(markdown_report(_summary(alerts=[alert])))
    assert ("code_inline", bad) in shown
    assert any(kind == "text" and bad in content for kind, content in shown)
    assert not [content for kind, content in shown if kind == "html_inline"]
