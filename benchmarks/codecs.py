"""Bytes of a message against quality, for kinds of adapters and codecs: one run each, with the same data and steps.

`python -m benchmarks.codecs OUT.json -s source=HDFS_1.tar.gz [--preset hdfs-2pct] [--cases "LoRA 8" ...]`

Each case is an `atalaia run` in a process of its own. Stages and rounds that are there already are used again, so the
benchmark goes on where it was stopped; runs that exist are only read. After each case OUT.json and OUT.md are written.
A case of `hdfs-2pct` takes about an hour on two idle cores (26 minutes of training, 36 of scoring two adapters).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from flows.settings import run_config
from storage.adapters import committed_rounds
from storage.layout import current
from storage.runs import hardware, records, summary_of, versions

SIGN = ("federation.codec=sign", "federation.codec_block=256")
CASES: dict[str, tuple[str, ...]] = {
    "LoRA 8": (),
    "LoRA 8, float16": ("federation.codec=float16",),
    "LoRA 8, int8": ("federation.codec=int8",),
    "LoRA 8, int4": ("federation.codec=int4",),
    "LoRA 8, sign": SIGN,
    "LoRA 8, topk 1 %": ("federation.codec=topk", "federation.topk_share=0.01"),
    "LoRA 8, topk 1 %, no feedback": (
        "federation.codec=topk",
        "federation.topk_share=0.01",
        "federation.error_feedback=false",
    ),
    "LoRA 2, sign": ("tuning.rank=2", *SIGN),
    "FFA-LoRA 8": ("tuning.kind=ffa",),
    "FFA-LoRA 2, int4": ("tuning.kind=ffa", "tuning.rank=2", "federation.codec=int4"),
    "FFA-LoRA 8, sign": ("tuning.kind=ffa", *SIGN),
    "FFA-LoRA 8, topk 5 %": ("tuning.kind=ffa", "federation.codec=topk", "federation.topk_share=0.05"),
    "RoLoRA 8": ("tuning.kind=rolora",),
    "RoLoRA 8, topk 5 %": ("tuning.kind=rolora", "federation.codec=topk", "federation.topk_share=0.05"),
    "square 16 of the gradient, int8": ("tuning.kind=sb", "tuning.rank=16", "federation.codec=int8"),
    "square 16 of the weights, int8": (
        "tuning.kind=sb",
        "tuning.rank=16",
        "tuning.bases=weights",
        "federation.codec=int8",
    ),
    "square 16 at random, int8": ("tuning.kind=sb", "tuning.rank=16", "tuning.bases=random", "federation.codec=int8"),
    "square 8 of the gradient": ("tuning.kind=sb", "tuning.rank=8", "federation.codec=float32"),
}
"""Settings of each case; those with at most 26.9 kB up are 20,000 times below full fine-tuning of the 135M model."""
BASELINE = "LoRA 8"


def run_case(preset: str, settings: Sequence[str]) -> str:
    """The id of the finished run with these settings, which is run first where it does not exist."""
    if (found := _finished(preset, settings)) is None:
        command = [sys.executable, "-c", "from flows.cli import main; main()", "run", preset, *settings]
        subprocess.run(command, check=True, stdout=sys.stderr)
        found = _finished(preset, settings)
    if found is None:
        raise RuntimeError(f"The run with {' '.join(settings)} ended without a record.")
    return found


def _finished(preset: str, settings: Sequence[str]) -> str | None:
    config = run_config(preset, list(settings)).model_dump(mode="json")
    return next(
        (facts.run_id for facts in reversed(records()) if facts.status == "finished" and facts.config == config), None
    )


def measured(case: str, settings: Sequence[str], run_id: str) -> dict[str, Any]:
    """What a case sends and how well it does."""
    summary = summary_of(run_id)
    training, findings = summary.training, summary.findings
    last = committed_rounds(current().run(run_id))[-1]
    return {
        "case": case,
        "settings": list(settings),
        "run_id": run_id,
        "bytes_up": training.bytes_up_per_client_round,
        "bytes_down": training.bytes_down_per_client_round,
        "times_below_full": training.full_model_bytes / training.bytes_up_per_client_round,
        "training_loss": pl.read_parquet(last.folder / "round.parquet")["loss"][0],
        "auroc": findings.get("auroc"),
        "average_precision": findings.get("average_precision"),
        "label_free_f1": (findings.get("label_free") or {}).get("f1"),
    }


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, fewest bytes up first, with the difference in AUROC to the baseline in points."""
    base = next((row["auroc"] for row in rows if row["case"] == BASELINE), None)
    lines = [
        "| case | up, bytes | times below full | down, bytes | loss | AUROC | points to LoRA 8 | label-free F1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: row["bytes_up"]):
        points = None if base is None or row["auroc"] is None else 100 * (row["auroc"] - base)
        numbers = [_text(row["training_loss"], ".3f"), _text(row["auroc"], ".4f"), _text(points, "+.2f")]
        sizes = f"{row['bytes_up']:,} | {row['times_below_full']:,.0f} | {row['bytes_down']:,}"
        lines.append(f"| {row['case']} | {sizes} | {' | '.join(numbers)} | {_text(row['label_free_f1'], '.3f')} |")
    return "\n".join(lines) + "\n"


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, or read, each case and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file; the table is written beside it with the ending .md")
    parser.add_argument("--preset", default="hdfs-2pct")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("-s", "--setting", action="append", default=[], help="KEY=VALUE for every case")
    given = parser.parse_args(arguments)
    common = ["scored_rounds=last", *given.setting]
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(given.cases, start=1):
        print(f"{number} of {len(given.cases)}: {case}", file=sys.stderr, flush=True)
        settings = [*common, *CASES[case]]
        rows.append(measured(case, settings, run_case(given.preset, settings)))
        facts = {"preset": given.preset, "hardware": hardware(), "versions": versions(), "cases": rows}
        given.out.write_text(json.dumps(facts, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(as_markdown(rows))
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
