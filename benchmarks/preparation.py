"""Preparation: from the raw log to masked windows, against the reference's scripts, up to the full size of HDFS.

`python -m benchmarks.preparation ARCHIVE --reference FOLDER` repeats the archive's log (50 times the 2 % sample: 11.1
million lines), each copy with block ids of its own. The ways take turns, each repetition in a process of its own:

- atalaia: the stages window and mask (tokenize is timed beside them);
- reference: session_window.py and preprocess_dataset.py.

Seconds are those of the work; whole processes, with Python's start and imports, are given, too. The windows' texts are
compared. The scripts mask a window's joined text, Atalaia each message: how many windows come out equal is told.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import reference
from benchmarks.command_line import SKIPPED, Size, given_options, model_folder, options, tell
from benchmarks.processes import in_fresh_process, peak_mb
from benchmarks.repeated_log import repeat_log
from benchmarks.turns import Way, compared, in_turns, seconds
from benchmarks.windows import fetch_log

_STAGES = ("window", "mask", "tokenize")


def measure(log: Path, tokenizer: Path, into: Path) -> dict[str, Any]:
    """Seconds, counts and peak memory of the three stages on the log in a folder, called in a process of its own."""
    from storage.composer import TokenRule
    from storage.datasets import HDFS
    from storage.masks import mask_log
    from storage.tokens import tokenize_windows
    from storage.windows import window_log

    raw = log / HDFS.raw_name
    window, mask, tokens = (into / name for name in _STAGES)
    for folder in (window, mask, tokens):
        folder.mkdir(parents=True)
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "window": lambda: window_log(raw, HDFS, HDFS.window, None, window),
        "mask": lambda: mask_log(raw, window, HDFS, HDFS.mask, mask),
        "tokenize": lambda: tokenize_windows(window, mask, tokenizer, TokenRule(), tokens),
    }
    figures: dict[str, Any] = {"raw_bytes": raw.stat().st_size}
    for name, stage in stages.items():
        begin, begin_cpu = time.perf_counter(), time.process_time()
        counts = stage()
        took, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        figures[name] = {
            "seconds": round(took, 3),
            "cpu_seconds": round(cpu, 3),
            "peak_mb": round(peak_mb()),
            **counts,
        }
    return figures


def measure_reference(checkout: Path, log: Path, place: Path) -> dict[str, Any]:
    """Seconds and peak memory of the reference's scripts on the log in a folder, called in a process of its own."""
    for file in log.iterdir():
        (reference.data_folder(place) / file.name).symlink_to(file)
    times = reference.prepare(checkout, place)
    return {"seconds": times, "peak_mb": round(peak_mb()), "pandas": version("pandas")}


class Preparations:
    """The ways of preparing one log, each repetition in a folder and a process of its own."""

    def __init__(self, log: Path, tokenizer: Path, place: Path) -> None:
        self.log, self.tokenizer, self.place = log, tokenizer, place
        self.found: dict[str, dict[str, Any]] = {}
        self.whole_process: dict[str, list[float]] = {}
        self.folders: dict[str, Path] = {}

    def _apart(self, way: str, work: Callable[..., dict[str, Any]], *arguments: Path) -> dict[str, Any]:
        """What `work` finds in a fresh process, given the arguments and an empty folder."""
        if way in self.folders:
            shutil.rmtree(self.folders[way])
        self.folders[way] = Path(tempfile.mkdtemp(prefix=way, dir=self.place))

        def run() -> None:
            self.found[way] = in_fresh_process(work, *arguments, self.folders[way] / "made")

        self.whole_process.setdefault(way, []).append(round(seconds(run), 3))
        return self.found[way]

    def atalaia(self, _: int) -> float:
        """Seconds of the stages window and mask."""
        found = self._apart("atalaia", measure, self.log, self.tokenizer)
        return float(found["window"]["seconds"] + found["mask"]["seconds"])

    def reference(self, checkout: Path) -> Callable[[int], float]:
        """The way that gives the seconds of the reference's scripts."""

        def way(_: int) -> float:
            found = self._apart("reference", measure_reference, checkout, self.log)
            return float(sum(found["seconds"].values()))

        return way

    def equality(self) -> dict[str, int]:
        """How the texts of the windows compare that the two ways made last."""
        theirs = reference.prepared_texts(self.folders["reference"] / "made")
        ours = masked_texts(self.folders["atalaia"] / "made")
        both = ours.keys() & theirs.keys()
        return {
            "windows": len(ours),
            "windows_of_the_reference": len(theirs),
            "equal": sum(ours[key] == theirs[key] for key in both),
        }


def masked_texts(made: Path) -> dict[str, str]:
    """The masked text of each window as the stages left it, by its key."""
    import polars as pl

    from storage.composer import TokenRule

    lines = pl.read_parquet(made / "mask" / "line_messages.parquet").join(
        pl.read_parquet(made / "mask" / "messages.parquet").select("message_id", "text"), on="message_id"
    )
    events = pl.read_parquet(made / "window" / "events.parquet").join(lines, on="line_number", maintain_order="left")
    texts = events.group_by("window_id", maintain_order=True).agg(pl.col("text").str.join(TokenRule().separator))
    windows = pl.read_parquet(made / "window" / "windows.parquet", columns=["window_id", "key"])
    return dict(windows.join(texts, on="window_id").select("key", "text").iter_rows())


def compare(log: Path, tokenizer: Path, place: Path, checkout: Path | None, repeats: int) -> dict[str, Any]:
    """All ways on one log; without a checkout, Atalaia alone."""
    preparations = Preparations(log, tokenizer, place)
    ways: dict[str, Way] = {"atalaia": preparations.atalaia}
    if checkout:
        ways["reference"] = preparations.reference(checkout)
    figures = compared(in_turns(ways, repeats))
    figures["whole_process_seconds"] = preparations.whole_process
    figures["last"] = preparations.found
    figures["equality_of_texts"] = preparations.equality() if checkout else None
    return figures


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            copies=Size((1, 10, 50), (1,), "how often the log is repeated"),
            repeats=Size((5, 2, 3), (1,), "repetitions for each of these, the last for all further ones"),
            reference_copies=Size(10, 1, "copies up to which the reference runs, too"),
        )
    )
    if not given.reference:
        print(f"reference: {SKIPPED}", file=sys.stderr)
    figures: dict[str, Any] = {"reference": str(given.reference.name) if given.reference else SKIPPED, "logs": {}}
    tokenizer = model_folder(given.model) / "tokenizer.json"
    for place, copies in enumerate(given.copies):
        print(f"{copies} copies", file=sys.stderr)
        repeats = given.repeats[min(place, len(given.repeats) - 1)]
        checkout = given.reference if copies <= given.reference_copies else None
        with tempfile.TemporaryDirectory() as temporary:
            sample, log = Path(temporary) / "sample", Path(temporary) / "log"
            sample.mkdir()
            log.mkdir()
            spec = fetch_log(given.archive, sample, Path(temporary))
            repeat_log(sample / spec.raw_name, sample / (spec.label_file or ""), log, copies)
            figures["logs"][copies] = compare(log, tokenizer, Path(temporary), checkout, repeats)
    tell(figures)


if __name__ == "__main__":
    main()
