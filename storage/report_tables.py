"""The tables of a report, once as values; Markdown, HTML and the terminal only draw them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from storage.summaries import THRESHOLDS, Summary, score_name

Cell = str | int | float | None
NONE = "–"
THRESHOLD_WORDS = {
    "label_free": "label-free",
    "validated": "validated (best F1 on validation labels)",
    "oracle": "oracle (best F1 on the test labels themselves)",
}


class Percent(float):
    """A share that is read as a percentage."""


class Hundredths(float):
    """A number that is read with two decimals, as the paper prints its own."""


class Bytes(float):
    """A size in bytes that is read in megabytes."""


class Seconds(float):
    """A duration that is read in the unit one would say it in."""


class Times(float):
    """A factor."""


@dataclass(frozen=True)
class Table:
    """A table with its title, the columns' names, and a note on how to read it."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    short: tuple[str, ...] = ()
    """The columns' names where room is scarce; they need a legend."""
    legend: str = ""
    """What the short names mean, for newcomers."""

    def right(self, column: int) -> bool:
        """Whether a column holds amounts, to be set flush right; words in the first one are names, as in 135M."""
        cells = [row[column] for row in self.rows]
        return any(cell is not None for cell in cells) and all(
            cell is None or isinstance(cell, int | float) or (column > 0 and cell[:1].isdigit()) for cell in cells
        )


def cell_text(value: Cell) -> str:
    """A cell as people read it: thousands separated, three decimals, a dash for nothing."""
    if value is None:
        return NONE
    if isinstance(value, float):
        if type(value) in _READ:
            return _READ[type(value)](value)
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def markdown_table(table: Table) -> str:
    """The table in GitHub's Markdown, with its title and note."""
    sides = ["---:" if table.right(column) else "---" for column in range(len(table.columns))]
    lines = [
        _markdown_row(table.columns),
        _markdown_row(sides),
        *(_markdown_row([cell_text(cell) for cell in row]) for row in table.rows),
    ]
    note = ["", markdown_text(table.note)] if table.note else []
    return "\n".join([f"### {markdown_text(table.title)}", "", *lines, *note, ""])


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def markdown_text(text: str) -> str:
    """Text as it is inside a line of Markdown, a table's too: no emphasis, code, tag, entity, link or end of a cell."""
    return re.sub(r"([\\`*_~&|]|\](?=\())", r"\\\1", one_line(text)).replace("<", "&lt;")


def one_line(text: str) -> str:
    """Text with blanks for its line ends, which would end a row or a list's line."""
    return re.sub(r"[\r\n]", " ", text)


def percent(share: float) -> str:
    """A share as a percentage that keeps its small values."""
    return f"{100 * share:.2f} %"


def megabytes(size: float) -> str:
    """Bytes in units of 10^6, as the paper's Table 2 has them; few, as some codecs send, in units of 10^3."""
    return f"{size / 1e6:,.2f} MB" if size >= 1e5 or not size else f"{size / 1e3:.3g} kB"


def seconds(value: float) -> str:
    """A duration in the unit one would say it in."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


_READ: dict[type[float], Callable[[float], str]] = {
    Percent: percent,
    Hundredths: "{:,.2f}".format,
    Bytes: megabytes,
    Seconds: seconds,
    Times: "{:,.0f} x".format,
}
"""How numbers of a kind are read."""


def detection_table(summary: Summary) -> Table:
    """The models beside the simple rules, all without labels; only a trained model is called tuned."""
    found = summary.findings
    rounds = {row["round"]: row for row in found["rounds"]}
    columns = ["detector", *_JUDGED, "AUROC", "average precision", "loss"]
    rows: list[list[Cell]] = []
    if found["round"] > 0:
        rows.append(["tuned model", *_judged(found["label_free"]), *_ranks(rounds[found["round"]])])
    if 0 in rounds:
        rows.append(["untouched model", *_judged(rounds[0].get("label_free")), *_ranks(rounds[0])])
    rows += [
        [one["title"], *_judged(one["populations"]["all"]["label_free"]), *_ranks(one["populations"]["all"])]
        for one in found.get("baselines", [])
        if one["main"]
    ]
    rows += [[f"rule: {rule['rule']}", *_judged(rule), None, None, None] for rule in found["rules"]]
    short = ("detector", "F1", "95 %", "P", "R", "FAR", "AUROC", "AP", "loss")
    return Table("Detection with a label-free threshold", columns, rows, _how_detected(found), short, _LEGEND)


_LEGEND = (
    "P, precision: share of alarms that are right. R, recall: share of anomalies that are found. F1: the balance of "
    "both; 95 %: where it may lie for want of more windows. FAR: share of normal windows flagged. AUROC, AP (average "
    "precision): how well the scores rank, 1 is best."
)
_RARITY = (
    " Rarity 2.3: one in ten calibration windows is as unusual by one of the two scores that it is made of, "
    "4.6: one in a hundred, 6.9: one in a thousand."
)


def prevalence_words(findings: dict[str, Any]) -> str:
    """At natural prevalence, or how far from it: where all that is left over is test, its anomalies are of the whole
    log, but not its normal windows."""
    splits = findings["splits"]
    windows = sum(split["windows"] for split in splits.values())
    natural = sum(split["anomalies"] for split in splits.values()) / max(1, windows)
    tested = splits["test"]["anomalies"] / max(1, splits["test"]["windows"])
    if splits["unused"]["windows"] or tested <= natural:
        return "at natural prevalence"
    return f"where anomalies are more frequent than in the log, {percent(tested)} instead of {percent(natural)}"


def _how_detected(found: dict[str, Any]) -> str:
    """Which score decides and why, and where the threshold comes from."""
    calibration = found["splits"]["calibration"]["windows"]
    note = (
        f"The score that decides is the {score_name(found)}: {_why(found['chosen'])}."
        f"{_RARITY if found['score'] == 'rarity' else ''} The models' threshold comes from {calibration:,} normal "
        f"calibration windows, for {percent(found['false_alarm_rate'])} false alarms. All test windows, "
        f"{prevalence_words(found)}. Loss: nats a token on the calibration windows, which training has not seen."
    )
    unchosen = found["without_labels"]
    if unchosen.get("f1") is not None and (unchosen["score"], None) != (found["score"], found["k"]):
        note += f" With the default score, {unchosen['score']}, no label is used at all: F1 {unchosen['f1']:.3f}."
    return note


def _why(chosen: str) -> str:
    """Why the score was taken, in a sentence's place."""
    return chosen.replace("as configured", "the configuration names it (detection.score)", 1)


_JUDGED = ("F1", "95 % interval", "precision", "recall", "false alarms")
"""Columns of `_judged`."""


def _judged(found: dict[str, Any] | None) -> list[Cell]:
    """F1 with its bootstrap interval, and the rates."""
    f1, *rates = _rates(found)
    low, high = ((found or {}).get(end) for end in ("f1_low", "f1_high"))
    return [f1, None if low is None or high is None else f"{low:.2f}–{high:.2f}", *rates]


def _rates(found: dict[str, Any] | None) -> list[Cell]:
    found = found or {}
    rate = found.get("false_alarm_rate")
    rates = [found.get("f1"), found.get("precision"), found.get("recall")]
    return [*rates, None if rate is None else Percent(rate)]


def _ranks(row: dict[str, Any]) -> list[Cell]:
    return [row["auroc"], row["average_precision"], row.get("loss")]


def few_windows_table(summary: Summary) -> Table:
    """The simple rules fitted on as few windows as the model was trained on."""
    few = summary.findings.get("rules_with_few_windows") or {"rules": [], "windows": 0, "draws": 0}
    rows: list[list[Cell]] = [[f"rule: {row['rule']}", *_rates(row)] for row in few["rules"]]
    note = (
        f"The model was trained on {few['windows']:,} windows; the rules above are fitted on all training windows. "
        f"Here they are fitted on {few['windows']:,} of them, drawn at random: means over {few['draws']} draws."
    )
    columns = ["detector", "F1", "precision", "recall", "false alarms"]
    short = ("detector", "F1", "P", "R", "FAR")
    return Table("Simple rules that saw as little as the model", columns, rows, note, short)


def rule_table(summary: Summary) -> Table:
    """The simple rules on never-seen sequences and on the paper's balanced sample."""
    rows: list[list[Cell]] = [
        [f"rule: {row['rule']}", words, *_judged(row)]
        for name, words in _POPULATIONS.items()
        for row in summary.findings.get("rules_by_population", [])
        if row["population"] == name and row["f1"] is not None
    ]
    note = "Fitted on all training windows; on all test windows the rules are in the first table."
    columns = ["detector", "windows", *_JUDGED]
    return Table("The simple rules on other windows", columns, rows, note)


def baseline_table(summary: Summary) -> Table:
    """The learned baselines of a run, or which setting trains them."""
    found = summary.findings.get("baselines")
    return learned_table(found) if found else Table("Learned baselines", ["what was trained"], [[_NO_BASELINES]])


_NO_BASELINES = "none were trained; baselines.methods=deeplog,logbert,fedlog trains them"


def learned_table(found: Sequence[dict[str, Any]]) -> Table:
    """Learned baselines, each score that they give, by threshold and by population."""
    rows = [
        [
            one["title"],
            one["score_title"],
            words,
            *_population(part)[1:5],
            _f1(part["published"]),
            *_population(part)[5:],
        ]
        for one in found
        for name, words in {"all": "all", **_POPULATIONS}.items()
        if (part := one["populations"][name])["windows"] and (one["main"] or name == "all")
    ]
    costs = [
        f"{one['title']} {one['parameters']:,} parameters, {megabytes(one['message_bytes'])} a message, "
        f"{one['trained_windows']:,} windows trained on in {one['rounds']} rounds, {seconds(one['seconds'])}"
        for one in found
        if one["main"]
    ]
    note = (
        "Small models of message numbers, trained on the same shares, as many clients a round, combined by the "
        "weighted mean; the first score of each stands for it. They need a list of all messages that the sites agree "
        "on; LogFiT reads text and needs none. The published rule has a fixed threshold where one is given. "
        f"{'; '.join(costs)}."
    )
    columns = ["detector", "score", "windows", "anomalous", *(f"{kind.replace('_', '-')} F1" for kind in THRESHOLDS)]
    return Table("Learned baselines", [*columns, "published rule F1", "AUROC", "average precision"], rows, note)


def _f1(found: dict[str, Any] | None) -> Cell:
    return found["f1"] if found else None


def threshold_table(summary: Summary) -> Table:
    """The three thresholds, each with its F1 interval."""
    found = summary.findings
    rows: list[list[Cell]] = [
        [THRESHOLD_WORDS[kind], found[kind]["threshold"], *_judged(found[kind])] for kind in THRESHOLDS if found[kind]
    ]
    note = "95 % bootstrap intervals over test windows, with the threshold as it is. The first one needs no labels. "
    note += "The best simple rule is taken by its F1 on the same test windows, which favours the rule."
    columns = ["threshold", "value", *_JUDGED]
    return Table("Three thresholds", columns, rows, note)


_POPULATIONS = {"unseen": "windows whose sequence training never saw", "balanced": "balanced sample, as in the paper"}


def population_table(summary: Summary) -> Table:
    """The same detector on all windows, on unseen sequences only, and on the paper's balanced sample."""
    found = summary.findings
    rows = [["all test windows", *_population(found)]]
    rows += [[_POPULATIONS[name], *_population(one)] for name, one in found["populations"].items() if one["windows"]]
    columns = [
        "windows",
        "number",
        "anomalous",
        *(f"{k.replace('_', '-')} F1" for k in THRESHOLDS),
        "AUROC",
        "average precision",
    ]
    note = "Many test windows are copies of training windows, and a balanced sample flatters precision."
    return Table("The same detector on other windows", columns, rows if found["windows"] else [], note)


def _population(found: dict[str, Any]) -> list[Cell]:
    f1 = [_f1(found[kind]) for kind in THRESHOLDS]
    return [found["windows"], found["anomalies"], *f1, found["auroc"], found["average_precision"]]


def round_table(summary: Summary) -> Table:
    """The chosen score by round."""
    keys = ["round", "loss", "auroc", "average_precision", *(f"{kind}_f1" for kind in THRESHOLDS)]
    rows = [[row[key] for key in keys] for row in summary.findings["rounds"]]
    columns = ["round", "loss", "AUROC", "average precision", "label-free F1", "validated F1", "oracle F1"]
    return Table("Round by round", columns, rows, "Round 0 is the untouched model. Test split, the chosen score.")


def score_table(summary: Summary) -> Table:
    """Every score before training and after; the one that decides is starred."""
    found, scores = summary.findings, summary.findings.get("by_score", [])
    models = [model for model in ("untouched", "tuned") if any(one.get(model) for one in scores)]
    rows: list[list[Cell]] = []
    for one in scores:
        decides = (one["score"], one["k"]) == (found["score"], found["k"])
        rows.append([score_name(one) + " *" * decides, *(cell for model in models for cell in _brief(one.get(model)))])
    is_known = any(cell is not None for row in rows for cell in row[1:])
    return Table(
        "Every score, before training and after" if len(models) > 1 else "Every score",
        ["score", *(f"{model}: {what}" for model in models for what in ("AUROC", "label-free F1", "oracle F1"))],
        rows if is_known else [],
        "All test windows. None of this decides which score is taken; *: the one that was.",
        ("score", *("AUROC", "F1", "best F1") * len(models)),
        ("The first three numbers are the untouched model's, the others the tuned one's. " if len(models) > 1 else "")
        + "F1: with a label-free threshold; best F1: the highest that any threshold gives.",
    )


def _brief(found: dict[str, Any] | None) -> list[Cell]:
    found = found or {}
    return [found.get(name) for name in ("auroc", "label_free_f1", "oracle_f1")]


def kind_table(summary: Summary) -> Table:
    """Recall by kind of failure, where the dataset names it."""
    rows = [
        [row[k] for k in ("kind", "windows", "recall", "best_rule_recall")]
        for row in summary.findings["recall_by_kind"]
    ]
    rule = (summary.findings["best_rule"] or {}).get("name", "best rule")
    columns = ["kind", "test windows", "model", f"rule: {rule}"]
    legend = f"Recall: share of the windows of a kind that are flagged, by the model and by the rule {rule}."
    return Table("Recall by kind of failure", columns, rows, short=("kind", "windows", "model", "rule"), legend=legend)


def paper_table(summary: Summary) -> Table:
    """The paper's way of telling: best F1 over rounds and thresholds, on the labels it is reported on."""
    rows = [[row["k"], row["f1"], row["round"], row["windows"]] for row in summary.findings["paper"]]
    note = "Highest F1 over all rounds and thresholds on a balanced sample: optimistic by design, for comparison only."
    return Table("As the paper reports it", ["K", "F1", "round", "windows"], rows, note)


def cost_table(summary: Summary) -> Table:
    """Bytes, parameters and time against full fine-tuning."""
    cost = summary.training
    rows: list[list[Cell]] = [
        ["trained parameters", cost.trainable_parameters, cost.full_parameters],
        ["a message, down", Bytes(cost.bytes_down_per_client_round), Bytes(cost.full_model_bytes)],
        ["a message, up", Bytes(cost.bytes_up_per_client_round), Bytes(cost.full_model_bytes)],
        [
            f"{cost.client_rounds} client rounds, both ways",
            Bytes(cost.bytes_sent),
            Bytes(cost.bytes_sent_by_full),
        ],
        ["windows trained on", cost.examples, None],
        ["their tokens", cost.tokens, None],
        ["computed tokens, prefixes shared", cost.computed_tokens, None],
        ["training", Seconds(cost.train_seconds), None],
        ["scoring", Seconds(cost.score_seconds), None],
    ]
    if cost.peak_memory_mb is not None:
        rows.append(["peak memory of a client", f"{cost.peak_memory_mb:,.0f} MB", None])
    if cost.latency_ms is not None:
        timed = f"{cost.latency_ms:,.0f} ± {cost.latency_deviation_ms or 0:,.0f} ms ({cost.latency_windows} windows)"
        rows.append(["scoring one window by itself", timed, None])
    if cost.together_ms is not None:
        timed = f"{cost.together_ms:,.1f} ms ({cost.together_windows:,} distinct windows)"
        rows.append(["scoring a window together with all others", timed, None])
    return Table("Costs", ["", "this run", "full fine-tuning"], rows if cost.client_rounds else rows[7:9])


def privacy_table(summary: Summary) -> Table:
    """What the rounds spent of a site's privacy."""
    found = summary.training.privacy
    if found is None:
        return Table("Differential privacy", [], [])
    rows: list[list[Cell]] = [
        ["noise", f"{found.noise}, on updates clipped to an L2 norm of {found.clipping_norm:.4g}"],
        ["epsilon spent", _epsilon(found.epsilon)],
        ["delta", f"{found.delta:g}"],
        ["compares", found.holds_for],
    ]
    if found.noise == "central":
        rows.insert(2, ["epsilon for those who know who was drawn", _epsilon(found.known_epsilon)])
    note = (
        "Of the adapters of all rounds together. It does not cover what else is told of a site: who was drawn, its "
        "number of windows, its losses and times."
    )
    return Table("Differential privacy", ["", "this run"], rows, note)


def _epsilon(value: float | None) -> str:
    return "without bound" if value is None else f"{value:.4g}"


def data_table(summary: Summary) -> Table:
    """What the data hold, and the splits."""
    names = ["train", "calibration", "validation", "test", "unused"]
    rows: list[list[Cell]] = [
        [name, *(summary.findings["splits"][name][k] for k in ("windows", "anomalies", "unlabelled"))] for name in names
    ]
    data = summary.data
    note = (
        f"{data.lines:,} lines, {data.windows:,} windows ({data.distinct_windows:,} distinct), {data.messages:,} "
        f"distinct masked messages, {data.tokens:,} tokens; {data.rejected:,} lines rejected, "
        f"{data.truncated_windows:,} windows cut at {data.cut_at:,} tokens. Anomalous windows drawn for train or "
        "calibration are left unused."
    )
    return Table("Windows by split", ["split", "windows", "anomalous", "unlabelled"], rows, note)
