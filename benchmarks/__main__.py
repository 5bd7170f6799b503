"""`python -m benchmarks ARCHIVE`: run the benchmarks that need an archive of HDFS logs, and keep their figures.

The archive may also be named by the environment variable ARCHIVE. Writes docs/results/bench-<date>.json.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from storage.runs import hardware, versions

BENCHMARKS = ("preparation", "sharing")
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def main() -> int:
    """Run each benchmark in a process of its own; 2 where no archive is named, 1 where a benchmark fails."""
    archive = sys.argv[1] if len(sys.argv) == 2 else os.environ.get("ARCHIVE")
    if not archive or not Path(archive).is_file():
        print("Name an archive of HDFS logs: make bench ARCHIVE=HDFS_1.tar.gz", file=sys.stderr)
        return 2
    figures: dict[str, object] = {"date": datetime.now(UTC).date().isoformat(), "hardware": hardware()}
    figures["versions"] = versions()
    for name in BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        run = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", archive], stdout=subprocess.PIPE, text=True, check=False
        )
        if run.returncode:
            return 1
        figures[name] = json.loads(run.stdout)
        print(run.stdout)
    path = RESULTS / f"bench-{figures['date']}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"Written to {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
