"""Why windows score high: their messages and tokens beside what the same messages are like in normal windows."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from storage.composer import Composer, Tokens
from storage.judging import Judge, learning
from storage.normal_windows import NormalWindows
from storage.summaries import SurprisingMessage
from storage.surprises import ScoredWindow, UsualSurprise, surprising_messages, token_reader


class Explainer:
    """Explains windows with a detector; the sample of normal windows is scored once, with the first."""

    def __init__(self, judge: Judge, normal: NormalWindows) -> None:
        self._judge, self._sample = judge, normal.sample

    @property
    def by_token(self) -> bool:
        """Whether messages rank by their most unusual token: where the highest surprise of a token decides."""
        return bool(self._judge.facts["score"] == "max_token")

    @property
    def compared(self) -> tuple[int, int]:
        """How many distinct normal windows say what is usual, and how many windows these stand for."""
        return self._sample.height, int(self._sample["windows"].sum())

    @cached_property
    def _usual(self) -> UsualSurprise:
        texts = self._sample["messages"].to_list()
        distinct = pl.Series([text for window in texts for text in window], dtype=pl.String).unique(maintain_order=True)
        numbers = {text: number for number, text in enumerate(distinct)}
        composer = Composer(self._judge.tokenizer, self._judge.tokens, list(numbers))
        sequences = [np.array([numbers[text] for text in window], dtype=np.uint32) for window in texts]
        tokens, _ = composer.tokens_of(sequences)
        windows, _ = self._scored(texts, tokens)
        return UsualSurprise(windows, self._sample["windows"].to_list())

    def explain(self, texts: Sequence[Sequence[str]], tokens: Sequence[Tokens]) -> list[list[SurprisingMessage]]:
        """The most unusual messages of each window, given its masked messages and their tokens."""
        if not texts:
            return []
        windows, predicted = self._scored(texts, tokens)
        end, tokenizer = self._judge.model[1].end_token_id, self._judge.tokenizer
        return [
            surprising_messages(
                window,
                self._usual,
                token_reader(tokenizer, end, each.ids.astype(np.int64), best),
                by_token=self.by_token,
            )
            for window, each, best in zip(windows, tokens, predicted, strict=True)
        ]

    def _scored(
        self, texts: Sequence[Sequence[str]], tokens: Sequence[Tokens]
    ) -> tuple[list[ScoredWindow], list[np.ndarray]]:
        if not tokens:
            return [], []
        model, loaded = self._judge.model
        ids = [each.ids.astype(np.int64) for each in tokens]
        scores = learning("scoring").score_tokens(model, loaded, ids, top=1)
        windows = [
            ScoredWindow(messages, each.starts.tolist(), -logs.astype(np.float64))
            for messages, each, logs in zip(texts, tokens, scores.log_probabilities, strict=True)
        ]
        return windows, scores.predicted
