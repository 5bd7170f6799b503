"""Which of several logs comes first: by the times that their first lines tell, so that rotated logs are one."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from storage.datasets import DatasetSpec
from storage.log_inputs import first_lines
from storage.raw_lines import decode_lines


def in_time_order(logs: Sequence[Path | str], spec: DatasetSpec) -> list[Path | str]:
    """The logs in the order of their first lines' times, those that tell none (an empty one, say) after them.

    As given where no line of the form tells a time, and where one is a pipe, which can be read only once.
    """
    if len(logs) == 1 or spec.log_format.time_format is None or not all(Path(log).is_file() for log in logs):
        return list(logs)
    times = [_first_time(Path(log), spec) for log in logs]
    return [logs[place] for place in sorted(range(len(logs)), key=lambda place: times[place] or datetime.max)]


def _first_time(log: Path, spec: DatasetSpec) -> datetime | None:
    form = spec.log_format
    lines = decode_lines(first_lines(log), spec.encoding).text
    times = form.times(form.parse(lines, list(form.time_fields))).drop_nulls()
    found: datetime | None = times[0] if len(times) else None
    return found
