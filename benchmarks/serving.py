"""How fast a served detector answers: requests a second and the 99th percentile, its score cache cold and warm.

    python -m benchmarks.serving [DETECTOR] [--requests N] [--clients N]

DETECTOR is whatever `atalaia detect --model` takes; without one, a tiny random model is served, which shows what
everything but the model costs. Each request holds the lines of one simulated HDFS block. Cold: every block is sent for
the first time; equal windows among them are still looked up. Warm: the same requests once more.
"""

import argparse
import json
import os
import re
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError

import numpy as np

_PATIENCE = 300.0


def main() -> None:
    """Serve, ask, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("detector", nargs="?", help="models:/NAME@champion, NAME or a detector's folder")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4, help="requests under way at a time")
    asked = parser.parse_args()
    # Tests and benchmarks start servers and tiny models the same way.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    with TemporaryDirectory() as scratch:
        requests = simulated_requests(Path(scratch) / "log", asked.requests)
        with (
            _served_model(asked.detector, Path(scratch)) as model,
            _serving(model, Path(scratch) / "log.txt") as address,
        ):
            with suppress(HTTPError):  # imports and the model's loading are not measured
                _ask(address, ["no line of the form"])
            runs = {name: _measured(address, requests, asked.clients) for name in ("cold", "warm")}
    windows = {"requests": len(requests), "lines": sum(map(len, requests)), "clients": asked.clients}
    print(json.dumps({"detector": asked.detector or "tiny random model", **windows, **runs}, indent=1))


def simulated_requests(folder: Path, count: int) -> list[list[str]]:
    """The lines of `count` simulated blocks, a request each."""
    from storage.hdfs_generator import generate

    folder.mkdir()
    generate(folder, count, 0)
    blocks: dict[str, list[str]] = defaultdict(list)
    for line in (folder / "HDFS.log").read_text().splitlines():
        blocks[re.findall(r"blk_-?\d+", line)[0]].append(line)
    return list(blocks.values())


@contextmanager
def _served_model(detector: str | None, scratch: Path) -> Iterator[str]:
    """A folder in MLflow's form: of the detector that is meant, or of a tiny random one."""
    import mlflow

    from storage.detector import pyfunc_arguments
    from storage.detectors import chosen_detector
    from storage.layout import current

    if detector is None:
        os.environ["ATALAIA_HOME"] = str(scratch / "home")
        detector = str(_tiny_detector(scratch))
    with chosen_detector(detector, None, current()) as chosen:
        mlflow.pyfunc.save_model(str(scratch / "served"), **pyfunc_arguments(chosen.folder))
        yield str(scratch / "served")


def _tiny_detector(scratch: Path) -> Path:
    from mlflow_session import write_detector

    from benchmarks.tiny_model import save_tiny_model
    from storage.layout import current

    model = save_tiny_model(scratch / "tiny")
    return write_detector(scratch / "detector", model, current(), threshold=1e9)


@contextmanager
def _serving(model: str, log: Path) -> Iterator[str]:
    """The address of MLflow's own server of the model, while the block runs."""
    from mlflow_session import free_port, running

    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    with running([*command, "--port", str(port)], f"{address}/ping", log):
        yield address


def _measured(address: str, requests: Sequence[Sequence[str]], clients: int) -> dict[str, float]:
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = np.array(list(pool.map(lambda lines: _ask(address, lines), requests)))
    elapsed = time.perf_counter() - started
    return {
        "requests_per_second": round(len(requests) / elapsed, 2),
        "p50_ms": round(1000 * float(np.quantile(seconds, 0.5)), 2),
        "p99_ms": round(1000 * float(np.quantile(seconds, 0.99)), 2),
    }


def _ask(address: str, lines: Sequence[str]) -> float:
    """Seconds until the answer."""
    body = json.dumps({"inputs": list(lines)}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        answer.read()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
