"""How well the learned baselines detect, and what they cost: `python -m benchmarks.event_baselines ARCHIVE`.

Splits, shares, draws of clients and seed are those of the preset hdfs-2pct; the report of
`atalaia run hdfs-2pct baselines.methods=deeplog,logbert,fedlog` holds the same rows beside the language model's.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import polars as pl
import torch

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.windows import fetch_log
from fl.baseline_comparison import baseline_findings, baseline_rows
from fl.event_settings import EventBaselines, Method
from fl.federation import Federation
from fl.rule_comparison import RuleJudge
from flows.presets import PRESETS
from storage.composer import TokenRule
from storage.masks import mask_log
from storage.partitions import PartitionRule, write_shares
from storage.report_tables import learned_table, markdown_table
from storage.splits import SplitRule, write_splits
from storage.stages import Stage, new_stage
from storage.tokens import tokenize_windows
from storage.windows import window_log
from tasks.search_threshold import windows_of, windows_table
from tasks.train_event_models import scores_of_baselines

FALSE_ALARM_RATE = 0.002


def prepared(archive: Path | None, model: str | None, clients: int, seed: int, root: Path) -> list[Stage]:
    """The tokenize, split and partition stages of a log."""
    with new_stage(root, "download", "log") as raw:
        spec = fetch_log(archive, raw.path, root)
    with new_stage(root, "window", "log") as windows:
        window_log(raw.done.file(spec.raw_name), spec, spec.window, None, windows.path)
    with new_stage(root, "mask", "log") as masks:
        mask_log(raw.done.file(spec.raw_name), Path(windows.done.path), spec, spec.mask, masks.path)
    with new_stage(root, "tokenize", "log") as tokens:
        folders = (Path(windows.done.path), Path(masks.done.path))
        tokenize_windows(*folders, model_folder(model) / "tokenizer.json", TokenRule(), tokens.path)
    with new_stage(root, "split", "log") as split:
        write_splits(tokens.done.file("windows.parquet"), SplitRule(seed=seed), split.path)
    with new_stage(root, "partition", "log") as shares:
        rule = PartitionRule(clients=clients, seed=seed)
        write_shares(Path(tokens.done.path), Path(split.done.path), rule, shares.path)
    return [tokens.done, split.done, shares.done]


def measured(stages: Sequence[Stage], baselines: EventBaselines, federation: Federation) -> dict[str, Any]:
    """What each method finds, with the processor time of all together, and the simple rules beside them."""
    tokens, split, shares = stages
    windows = windows_of(windows_table(tokens, split))
    started = time.process_time()
    scores, trained = scores_of_baselines(tokens, shares, baselines, federation, _tell)
    cpu_seconds = time.process_time() - started
    columns = {name: scores[name].to_numpy() for name in scores.columns if name != "window_id"}
    seed = federation.seed
    found = baseline_findings(baseline_rows(windows, columns, FALSE_ALARM_RATE, seed), trained)
    judge = RuleJudge(windows)
    print(markdown_table(learned_table(found)), file=sys.stderr)
    return {
        "cpu_seconds": cpu_seconds,
        "threads": torch.get_num_threads(),
        "windows": dict(pl.Series(windows.split).value_counts().iter_rows()),
        "baselines": found,
        "rules": [row for row in judge.rows(judge.flags(windows.rows("train")), seed) if row["population"] == "all"],
    }


def _tell(done: float, total: float | None, note: str = "") -> None:
    if done % 5 == 0:
        print(f"{done:.0f} of {total:.0f} {note}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print JSON, and a table on standard error."""
    parser = options(
        __doc__,
        rounds=Size(EventBaselines().baseline_rounds, 1, "rounds of training"),
        threads=Size(1, 1, "threads of the computation"),
        seed=Size(0, 0, "seed of split, shares, draws and training"),
    )
    parser.add_argument("--end", action="store_true", help="let a window's end be one more event")
    parser.add_argument("--methods", nargs="+", choices=get_args(Method), default=get_args(Method))
    given = given_options(parser)
    torch.set_num_threads(given.threads)
    few = PRESETS["hdfs-2pct"]["federation"]
    federation = Federation(clients=few["clients"], fraction=few["fraction"], seed=given.seed)
    with tempfile.TemporaryDirectory() as place:
        stages = prepared(given.archive, given.model, federation.clients, given.seed, Path(place))
        baselines = EventBaselines(tuple(given.methods), baseline_rounds=given.rounds, baseline_end=given.end)
        tell(measured(stages, baselines, federation))


if __name__ == "__main__":
    main()
