"""Task: cut the log into windows."""

from collections.abc import Mapping
from typing import Any

from storage.datasets import DatasetSpec
from storage.stages import NewStage, Stage
from storage.windows import WindowRule, window_log
from tasks.progress import progress_of
from tasks.stage_task import stage


@stage("window", unkeyed=("spec",))
def window_logs(
    new: NewStage, download: Stage, reading: Mapping[str, Any], rule: WindowRule, limit: int | None, spec: DatasetSpec
) -> None:
    """Group the lines by session, count or time; `reading` is what of `spec` decides the result."""
    raw = download.file(spec.raw_name)
    new.counts |= window_log(raw, spec, rule, limit, new.path, progress=progress_of("window"))


def reading_facts(spec: DatasetSpec) -> dict[str, Any]:
    """What of a dataset's description decides how its lines are read: neither where it comes from nor its defaults."""
    return spec.model_dump(mode="json", exclude={"url", "md5", "source", "window", "mask"})
