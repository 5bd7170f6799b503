"""Task: turn windows into the token sequences that the model reads."""

from pathlib import Path

from storage.stages import NewStage, Stage
from storage.tokens import TokenRule
from storage.tokens import tokenize_windows as tokenize
from tasks.progress import progress_of
from tasks.stage_task import stage


@stage("tokenize")
def tokenize_windows(new: NewStage, window: Stage, mask: Stage, model: Stage, rule: TokenRule) -> None:
    """Tokenize each distinct message once, and put the windows together from them."""
    tokenizer = model.file("tokenizer.json")
    new.counts |= tokenize(Path(window.path), Path(mask.path), tokenizer, rule, new.path, progress_of("tokenize"))
