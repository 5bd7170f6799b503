"""storage/latencies.py: times that were measured apart, kept by machine and log."""

import json
from pathlib import Path
from typing import Any

from storage.latencies import keep_timings, timed_table, timings_table
from storage.layout import Layout


def _found(mean: float, dtype: str = "float32", **machine: object) -> dict[str, Any]:
    figures = {"samples": 4, **{f"{name}_ms": mean for name in ("mean", "deviation", "median", "p99")}, "peak_mb": 9.0}
    return {"machine": machine or {"gpu": "Some GPU 9"}, "dtype": dtype, "figures": figures}


def test_times_join_those_of_the_same_machine_and_log(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    [path] = keep_timings("hdfs", "random", [("135M", "padded", _found(1)), ("135M", "alone", _found(2))], layout)
    assert path.parent.name == "some-gpu-9-hdfs"
    again = [("135M", "padded", _found(3)), ("135M", "padded", _found(4, "bfloat16")), ("1.7B", "alone", _found(5))]
    assert keep_timings("hdfs", "random", again, layout) == [path]
    [other] = keep_timings("bgl", "random", [("135M", "padded", _found(6))], layout)
    [slower] = keep_timings("hdfs", "random", [("135M", "padded", _found(7, processor="A CPU", threads=2))], layout)
    assert len({path, other, slower}) == 3
    rows = [row[:5] for row in timings_table(path).rows]
    assert rows == [
        ["135M", "float32:padded", 4, 3, 3],
        ["135M", "float32:alone", 4, 2, 2],
        ["135M", "bfloat16:padded", 4, 4, 4],
        ["1.7B", "float32:alone", 4, 5, 5],
    ]
    assert timings_table(slower).title == "Table 3 on A CPU, 2 threads"
    assert len(timed_table([], layout)) == 6


def test_a_file_that_cannot_be_read_gives_way(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    [path] = keep_timings("hdfs", "random", [("135M", "padded", _found(1))], layout)
    for broken in ("not JSON", "[3]"):
        path.write_text(broken)
        keep_timings("hdfs", "random", [("135M", "padded", _found(2))], layout)
        assert list(json.loads(path.read_text())["135M"]) == ["float32:padded"]
