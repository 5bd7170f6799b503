"""Named runs: each lists only what differs from the defaults, which are the paper's."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "hdfs-2pct": {
        "partition": {"clients": 8},
        "federation": {"clients": 8, "fraction": 0.25, "rounds": 6},
        "training": {"steps": 4, "batch_size": 16},
    },
    "demo": {
        "dataset": {"name": "hdfs-sim", "blocks": 1500},
        "federation": {"clients": 4, "fraction": 0.5, "rounds": 3},
        "training": {"steps": 2, "batch_size": 8},
        "scoring": {"scored_rounds": "last"},
    },
}
"""`paper`: the whole of HDFS, 50 clients, 50 rounds; `hdfs-2pct`: the 2 % sample on two cores; `demo`: minutes, no data
needed."""
