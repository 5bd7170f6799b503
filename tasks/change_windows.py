"""Task: change the test windows as programs and the collection of their logs change over time."""

from pathlib import Path

from storage.instability import Instability
from storage.instability import change_windows as change
from storage.stages import NewStage, Stage
from storage.tokens import TokenRule
from tasks.stage_task import stage


@stage("change")
def change_windows(
    new: NewStage, tokenized: Stage, split: Stage, model: Stage, tokens: TokenRule, rule: Instability
) -> None:
    """The tokenized windows with some of the test windows changed; labels stay."""
    tokenizer = model.file("tokenizer.json")
    new.counts |= change(Path(tokenized.path), Path(split.path), tokenizer, tokens, rule, new.path)
