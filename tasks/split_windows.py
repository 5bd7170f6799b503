"""Task: decide which windows are learned from and which are judged by."""

from storage.splits import SplitRule, write_splits
from storage.stages import NewStage, Stage
from tasks.stage_task import stage


@stage("split")
def split_windows(new: NewStage, tokenized: Stage, rule: SplitRule) -> None:
    """Divide the windows into train, calibration, validation and test."""
    new.counts |= write_splits(tokenized.file("windows.parquet"), rule, new.path)
