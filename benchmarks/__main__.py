"""`python -m benchmarks [ARCHIVE]`: run the benchmarks and keep their figures in docs/results/bench-<date>.json.

The archive holds HDFS logs; without one a simulated log is taken. What compares with the reference's code is skipped
without --reference. --quick shows that all of it works, and keeps nothing. A file of the same day is added to.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.command_line import given_options, options
from storage.runs import hardware, versions

BENCHMARKS = ("token_counts", "preparation", "aggregation", "forward", "limit", "growth", "training", "scoring")
"""Shortest first."""
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def main() -> int:
    """Run each benchmark in a process of its own, keep its figures at once; 1 where one failed."""
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="run just these")
    given = given_options(parser)
    arguments = [str(given.archive)] if given.archive else []
    arguments += ["--reference", str(given.reference)] if given.reference else []
    arguments += ["--model", given.model] if given.model else []
    arguments += ["--quick"] if given.quick else []
    failed = [name for name in BENCHMARKS if name in given.only and not _run(name, arguments, keep=not given.quick)]
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, arguments: list[str], keep: bool) -> bool:
    print(f"{name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(run.stdout)
    if run.returncode == 0 and keep:
        _keep(name, json.loads(run.stdout))
    return run.returncode == 0


def _keep(name: str, figures: dict[str, object]) -> None:
    date = datetime.now(UTC).date().isoformat()
    path = RESULTS / f"bench-{date}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept |= {"date": date, "hardware": hardware(), "versions": versions(), name: figures}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"Written to {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
