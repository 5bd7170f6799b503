"""What tests share: a tiny model, the real logs where they are, and the embedded model's weights."""

import os
from pathlib import Path

import pytest

from benchmarks.tiny_model import save_tiny_model

# Before anything imports prefect, mlflow or flwr.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# Before anything imports torch: on a busy machine, threads that spin for long take the cores from the others.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

REPOSITORY = Path(__file__).resolve().parent.parent


def _real_logs(archive: str) -> Path:
    folder = Path(os.environ.get("ATALAIA_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / archive
    if not path.is_file():
        if os.environ.get("ATALAIA_REQUIRE_REAL_LOGS"):
            pytest.fail(f"the real logs must be here, but {path} is not")
        pytest.skip(f"the real logs are not here ({path}); name their folder in ATALAIA_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def hdfs_archive() -> Path:
    """The 2 % sample of HDFS_v1, as an archive of the official layout."""
    return _real_logs("hdfs_2pct/HDFS_1.tar.gz")


@pytest.fixture(scope="session")
def bgl_archive() -> Path:
    """The first 100,000 lines of BGL, as an archive of the official layout."""
    return _real_logs("bgl_100k/BGL.tar.gz")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded SmolLM2-135M as a local directory, dequantized once for the whole test run."""
    from fl.model import EMBEDDED, prepare_model

    return prepare_model(EMBEDDED, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with seeded random weights and a byte-level tokenizer trained on a few lines."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder
