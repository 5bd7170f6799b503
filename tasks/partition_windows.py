"""Task: deal the training windows to clients."""

from pathlib import Path

from storage.partitions import PartitionRule, write_shares
from storage.stages import NewStage, Stage
from tasks.progress import progress_of
from tasks.stage_task import stage


@stage("partition")
def partition_windows(new: NewStage, tokenized: Stage, split: Stage, rule: PartitionRule) -> None:
    """Give every client its share of the training windows."""
    new.counts |= write_shares(Path(tokenized.path), Path(split.path), rule, new.path, progress_of("partition"))
