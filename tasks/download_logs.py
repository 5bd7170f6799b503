"""Task: have the raw log and its labels on disk."""

from storage.archives import fetch
from storage.datasets import DatasetConfig, DatasetSpec
from storage.layout import current
from storage.stages import NewStage
from tasks.progress import progress_of
from tasks.stage_task import Retry, stage


@stage("download", unkeyed=("config", "spec"), retry=Retry((ConnectionError, TimeoutError), times=2, first_delay=5))
def download_logs(new: NewStage, fingerprint: str, config: DatasetConfig, spec: DatasetSpec) -> None:
    """Fetch, unpack or simulate the log; `fingerprint` stands for its content, wherever it is fetched from."""
    new.counts |= fetch(config, spec, new.path, current().downloads, progress_of("download"))
