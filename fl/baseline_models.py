"""The learned baselines by their names, and how each is made for the windows that it is to learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl.errors import ModelError
from fl.event_models import DeepLog, EventModel, FedLog, LogBert
from fl.event_settings import EventBaselines, Method
from fl.event_windows import Events, vocabulary_of
from fl.masked_text import LogFit, read_windows

EVENT_MODELS: dict[Method, type[DeepLog] | type[LogBert] | type[FedLog]] = {
    "deeplog": DeepLog,
    "logbert": LogBert,
    "fedlog": FedLog,
}
"""Those that read message numbers."""
MODELS: dict[Method, type[EventModel]] = {**EVENT_MODELS, "logfit": LogFit}
"""All of them."""


class Reader(Protocol):
    """How windows of message ids become what a model reads."""

    def events(self, window: npt.NDArray[np.uint32]) -> Events: ...


@dataclass(frozen=True)
class Text:
    """What a model of text needs beside message ids."""

    folder: Path
    """The masked language model."""
    messages: Mapping[int, str]
    """Masked messages by id."""
    separator: str


def make_model(
    method: Method, windows: Sequence[npt.NDArray[np.uint32]], baselines: EventBaselines, text: Text | None = None
) -> tuple[EventModel, Reader]:
    """An untrained model, drawn from torch's generator, and the reader of its windows.

    `windows` are all training windows. Raises ModelError where `logfit` has no text or no usable model.
    """
    if method != "logfit":
        vocabulary = vocabulary_of(windows)
        return EVENT_MODELS[method](vocabulary), vocabulary
    if text is None:
        raise ModelError("The baseline logfit reads text: give the masked language model and the messages.")
    reader = read_windows(text.folder, text.messages, text.separator)
    return LogFit(text.folder, reader, baselines.masked_rank), reader
