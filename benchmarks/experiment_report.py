"""Table and figures of what was measured: `python -m benchmarks.experiment_report RESULTS OUT [EVENTS.jsonl]`.

RESULTS is the folder of benchmarks.gpu_experiments, EVENTS.jsonl what benchmarks.event_experiments wrote. OUT gets
experiments.csv, and events.csv, unstable.png and codecs.png.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.experiment_data import AS_IT_IS
from benchmarks.experiment_plan import SHARES
from storage.pictures import ANOMALOUS, MODEL, NORMAL, RULE, picture

Row = dict[str, Any]
_THRESHOLDS = ("label_free", "validated", "oracle")
KINDS = (
    ("reworded windows", "one message reworded,\nin a share of windows"),
    ("fields windows", "one message with other\nfields, in a share of windows"),
    ("duplicated windows", "one line repeated,\nin a share of windows"),
    ("shuffled windows", "four lines reordered,\nin a share of windows"),
    ("reworded messages", "a share of all messages\nreworded"),
    ("fields messages", "a share of all messages\nwith other fields"),
)
GOAL_BYTES = 26_900
"""An upload 20,000 times smaller than a full fine-tuning's, of 538 MB."""


def experiment_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each experiment, test and detector, over all test windows."""
    return [
        {**_facts(result), **_test(name, test), **row}
        for result in results
        for name, test in result["tests"].items()
        for row in [*_scores(test), *_rules(test)]
    ]


def _facts(result: Mapping[str, Any]) -> Row:
    settings = result["settings"]
    trained = bool(result.get("losses"))
    return {
        "experiment": result["name"],
        "adapter": f"{settings['tuning']['kind']} {settings['tuning']['rank']}",
        "codec": settings["federation"]["codec"] if trained else None,
        "partition": settings["partition"] if trained else None,
        "seed": settings["federation"]["seed"],
        "steps": result.get("steps"),
        "trained_windows": result.get("windows"),
        "last_loss": result["losses"][-1] if trained else None,
        "bytes_up": result.get("bytes_up"),
        "bytes_down": result.get("bytes_down"),
    }


def _test(name: str, test: Mapping[str, Any]) -> Row:
    log, split, change = name.split(", ")
    return {
        "log": log,
        "split": split.removesuffix(" split"),
        "change": change,
        "windows": test["windows"],
        "anomalies": test["anomalies"],
    }


def _scores(test: Mapping[str, Any]) -> Iterator[Row]:
    for name, score in test["scores"]["all"].items():
        if name.startswith("unaligned"):
            continue
        row = {"detector": name, "auroc": score["auroc"], "average_precision": score["ap"]}
        for kind in _THRESHOLDS:
            row[f"{kind}_f1"] = score[kind]["f1"] if kind in score else None
        found = score["label_free"]
        yield row | {"label_free_recall": found["recall"], "label_free_false_alarms": found["false_alarm_rate"]}


def _rules(test: Mapping[str, Any]) -> Iterator[Row]:
    for name, rule in test["rules"].items():
        alarms = rule["false_alarm_rate"]
        # A detector that only says yes or no has one point of the curve; the area is that under two straight lines.
        found = {"auroc": (1 + rule["recall"] - alarms) / 2, "label_free_f1": rule["f1"]}
        found |= {"label_free_recall": rule["recall"], "label_free_false_alarms": alarms}
        yield {"detector": f"rule: {name}", **found}


def event_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each learned baseline, split, change and score."""
    rows = []
    for result in results:
        known = {name: result[name] for name in ("method", "split", "end", "trained_windows")}
        for change, scores in result["tests"].items():
            for name, kinds in scores.items():
                first, found = next(iter(kinds.values())), kinds["label_free"]
                row: Row = {**known, "change": change, "score": name, "auroc": first["auroc"]}
                row["average_precision"] = first["average_precision"]
                row |= {f"{kind}_f1": figures["f1"] for kind, figures in kinds.items()}
                row |= {f"label_free_{field}": found[field] for field in ("recall", "false_alarm_rate")}
                rows.append(row)
    return rows


def unstable_figure(rows: Sequence[Row], events: Sequence[Row], path: Path) -> None:
    """F1 without labels (upper row) and AUROC (lower row) by the share that is changed, a column a kind of change."""
    model, vectors, types = "mean_token", "rule: unseen event-count vector", "rule: unseen event type"
    lines: list[tuple[str, str, str, Sequence[Row], str, str]] = [
        ("SmolLM2-135M, threshold without labels", MODEL, "-o", rows, model, "label_free_f1"),
        ("the same, threshold by labels from before the change", MODEL, ":o", rows, model, "validated_f1"),
        ("unseen event-count vector", RULE, "--s", rows, vectors, "label_free_f1"),
        ("unseen event type", NORMAL, ":^", rows, types, "label_free_f1"),
        (
            "FedLog-style convolution, end counted, without labels",
            ANOMALOUS,
            "-.d",
            events,
            "surprise",
            "label_free_f1",
        ),
    ]
    with picture(15, 5.4, columns=len(KINDS), rows=2) as (figure, panels):
        for place, axes in enumerate(panels):
            column, upper = place % len(KINDS), place < len(KINDS)
            for label, colour, style, found, detector, f1 in lines:
                curve = list(_curve(found, detector, KINDS[column][0], f1 if upper else "auroc"))
                if curve and (upper or f1 != "validated_f1"):
                    axes.plot(*zip(*curve, strict=True), style, color=colour, label=label, markersize=4)
            axes.set(ylim=(-0.02, 1.02) if upper else (0.3, 1.02), xticks=[0, *SHARES])
            axes.set_xticklabels(["0", *(f"{share:.0%}" for share in SHARES)])
            if upper:
                axes.set_title(KINDS[column][1], fontsize=9)
            if column == 0:
                axes.set_ylabel("F1" if upper else "AUROC")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=80, metadata={"Software": None})


def _curve(rows: Sequence[Row], detector: str, kind: str, field: str) -> Iterator[tuple[float, float]]:
    """Share and figure on HDFS; an event baseline is FedLog's."""
    wanted = {AS_IT_IS: 0.0, **{f"{kind} {share}": share for share in SHARES}}
    for row in rows:
        mine = (
            row.get("detector") == detector and row["log"] == "hdfs" and row["experiment"] in ("headline", "unstable")
        )
        mine = mine or (row.get("score") == detector and row["method"] == "fedlog" and row["split"] == "default")
        if mine and row["change"] in wanted and row.get(field) is not None:
            yield wanted[row["change"]], row[field]


def codec_figure(rows: Sequence[Row], path: Path) -> None:
    """AUROC by the bytes that a client sends in a round."""
    mine = [row for row in rows if row["experiment"].startswith("sends ") and row["detector"] == "mean_token"]
    with picture(9, 4) as (figure, (axes,)):
        best = next(row["auroc"] for row in mine if row["experiment"] == "sends LoRA 8")
        axes.axhspan(best - 0.005, 1, color="#dff0e0", label="within 0.005 of rank 8 as it is")
        axes.axvline(GOAL_BYTES, color=ANOMALOUS, linestyle="--", label=f"goal, {GOAL_BYTES / 1000:.1f} kB")
        for number, row in enumerate(sorted(mine, key=lambda row: float(row["bytes_up"])), 1):
            at, name = (row["bytes_up"], row["auroc"]), row["experiment"].removeprefix("sends ")
            axes.plot(*at, "o", color=MODEL, label=f"{number}: {name}")
            axes.annotate(str(number), at, (0, -14), textcoords="offset points", fontsize=9, ha="center")
        axes.set(
            xscale="log", xlim=(2e3, 6e6), ylim=(0.77, 1.01), xlabel="bytes up, a client and round", ylabel="AUROC"
        )
        figure.legend(loc="outside right upper", handlelength=1)
        figure.savefig(path, dpi=90, metadata={"Software": None})


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of benchmarks.gpu_experiments")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("events", type=Path, nargs="?", help="lines of benchmarks.event_experiments")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = experiment_rows(_lines(given.results / "experiments.jsonl"))
    events = event_rows(_lines(given.events)) if given.events else []
    pl.DataFrame(rows, infer_schema_length=None).write_csv(given.out / "experiments.csv", float_precision=4)
    if events:
        pl.DataFrame(events, infer_schema_length=None).write_csv(given.out / "events.csv", float_precision=4)
    unstable_figure(rows, events, given.out / "unstable.png")
    codec_figure(rows, given.out / "codecs.png")


if __name__ == "__main__":
    main()
