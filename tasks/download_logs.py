"""Task: have the raw log and its labels on disk."""

from storage.archives import fetch
from storage.datasets import DatasetConfig, DatasetSpec
from storage.layout import current
from storage.stages import NewStage
from tasks.progress import progress_of
from tasks.stage_task import stage


@stage("download", unkeyed=("config", "spec"))
def download_logs(new: NewStage, fingerprint: str, config: DatasetConfig, spec: DatasetSpec) -> None:
    """Fetch, unpack or simulate the log; `fingerprint` stands for its content, wherever it is fetched from.

    A server that does not answer is tried again in there, for as long as storage.downloads.Patience says.
    """
    new.counts |= fetch(config, spec, new.path, current().downloads, progress_of("download"))
