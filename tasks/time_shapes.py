"""Task: time one way of scoring windows with one of SmolLM's shapes, for the paper's Table 3, in a child process."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from fl.errors import ModelError
from fl.shape_latency import FIGURES, SHAPES, TimedWindows, TimingJob, save_job
from storage.progress import Progress
from storage.stages import NewStage, Stage
from tasks.caching import PROJECT
from tasks.child_process import die_with_parent
from tasks.progress import progress_of
from tasks.stage_task import StageTask, stage

WAYS = ("padded", "alone", "together")
"""As the paper measured, and as Atalaia scores: a window by itself, and all together."""
_WORDS = {"padded": "rows of 1,024 tokens", "alone": "windows one by one", "together": "all windows together"}


def timing_name(shape: str, way: str) -> str:
    """The name of the stage that times a shape in a way."""
    return f"{shape}-{way}"


def timing_names(shapes: Iterable[str]) -> list[str]:
    """The names of the stages that time these shapes, in order."""
    return [timing_name(shape, way) for shape in shapes for way in WAYS]


def _time_shape(
    new: NewStage, tokenized: Stage, split: Stage, job: TimingJob, hardware: Mapping[str, str], name: str
) -> None:
    """Draw windows of the test split and time them; the key holds the hardware, on which the figures depend."""
    with tempfile.TemporaryDirectory(prefix="atalaia-timing-") as place:
        folder = Path(place)
        save_job(job, _windows(tokenized, split), folder)
        _run(folder, name, _WORDS[job.way], progress_of(name))
        found = json.loads((folder / FIGURES).read_text())
    (new.path / FIGURES).write_text(json.dumps(found, indent=1) + "\n")
    new.counts |= {"milliseconds": found["figures"]["mean_ms"], "peak_mb": found["figures"]["peak_mb"]}


TIMINGS: Mapping[str, StageTask[Stage, Stage, TimingJob, Mapping[str, str], str]] = {
    name: stage(name, modules=("fl.shape_latency",))(_time_shape) for name in timing_names(SHAPES)
}
"""A stage for each shape and way, so that what was timed is kept when the next one is cut off."""


def _windows(tokenized: Stage, split: Stage) -> TimedWindows:
    """The distinct windows of the test split, in order of sequence_id."""
    sides = pl.read_parquet(split.file("splits.parquet")).filter(pl.col("split") == "test")
    windows = pl.read_parquet(tokenized.file("windows.parquet"), columns=["window_id", "sequence_id"])
    tested = windows.join(sides, on="window_id", how="semi").sort("window_id")
    columns = ["sequence_id", "token_ids", "message_starts"]
    texts = pl.read_parquet(tokenized.file("sequences.parquet"), columns=columns)
    texts = texts.join(tested, on="sequence_id", how="semi").sort("sequence_id").with_row_index("place")
    # A window without any token has no row of its own there, and nothing to be timed.
    order = tested.join(texts.select("sequence_id", "place"), on="sequence_id").sort("window_id")["place"]
    ids, starts = ([row.to_numpy() for row in texts[name]] for name in ("token_ids", "message_starts"))
    return TimedWindows(ids, starts, order.to_numpy())


def _run(folder: Path, name: str, words: str, progress: Progress) -> None:
    """Run the job to its end; raises ModelError with what it said last where it fails."""
    with (folder / "job.log").open("wb+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fl.shape_latency", str(folder)],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=die_with_parent,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                done, _, total = line.partition(" ")
                progress(float(done), float(total), words)
            process.wait()
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        why = (folder / "job.log").read_text(errors="replace").strip().rpartition("\n")[2]
        if process.returncode < 0 or not why:
            # What a process that was killed said before it has nothing to do with it.
            why = f"its process ended with status {process.returncode}, as for want of memory"
        raise ModelError(f"{name} could not be timed: {why}")
