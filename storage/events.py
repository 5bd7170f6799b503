"""What a running job tells the process that watches it: one JSON object a line in `progress.jsonl`.

started     rounds, committed: how many rounds are wanted, and how many were there before
round       round, clients (partition ids drawn), learning_rate
client      round, partition, done, total: steps of one client, told by itself
loaded      seconds: a worker has imported libraries, or has put the model into memory
committed   the row of round.parquet, and `of`: the rounds wanted
finished    rounds
error       message: one line
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

EVENTS = "progress.jsonl"


def append_event(run_folder: Path, event: str, **facts: object) -> None:
    """Append an event with its time (seconds since 1970); numbers and short names only.

    Several processes may append: each line is one write. A failed write loses the event, never the job.
    """
    line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(run_folder / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read_events(run_folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from a byte offset on, and the offset to go on from; a line still being written is left for later."""
    try:
        with (run_folder / EVENTS).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    complete = data[: data.rfind(b"\n") + 1]
    return [event for line in complete.splitlines() if (event := _parsed(line))], offset + len(complete)


def _parsed(line: bytes) -> dict[str, Any] | None:
    # A disk that was full for a moment may have left part of a line.
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
