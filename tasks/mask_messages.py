"""Task: blot out what differs between messages of the same kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.datasets import DatasetSpec
from storage.masks import MaskRules, mask_log
from storage.stages import NewStage, Stage
from tasks.progress import progress_of
from tasks.stage_task import stage


@stage("mask", unkeyed=("spec",))
def mask_messages(
    new: NewStage, download: Stage, window: Stage, reading: Mapping[str, Any], rules: MaskRules, spec: DatasetSpec
) -> None:
    """Mask the message of every line that is in a window, and keep each distinct one once."""
    raw = download.file(spec.raw_name)
    new.counts |= mask_log(raw, Path(window.path), spec, rules, new.path, progress_of("mask"))
