"""A masked language model of a window's text, as LogFiT and the reference code's branch for BERT models have it.

LogFiT (Almodovar et al., IEEE TNSM 2024, doi 10.1109/TNSM.2024.3358730) fine-tunes a BERT-family model on normal logs
and flags a window whose masked tokens are too seldom among the K most probable ones. Here the model gets LoRA adapters,
which alone are trained and sent.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fl.errors import ModelError
from fl.event_models import EventModel, Floats, ScoreKind, even_parts, mean_over_draws
from fl.event_windows import Events
from fl.model import quiet_transformers

KS = (1, 3, 5, 10)
_TARGETS = (("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q_proj", "v_proj"), ("Wqkv",))
"""What query and value are called in BERT and its kin, in DistilBERT, in DeBERTa, elsewhere, and where they are one."""
_TOKENS = 2048
"""Tokens of padded rows that go through the model at once when it scores."""
_SHARE, _LONGEST = 0.15, 512


@dataclass(frozen=True)
class TextWindows:
    """How windows of message ids become what the model reads."""

    tokenizer: Any
    """A transformers tokenizer with a mask token."""
    messages: Mapping[int, str]
    """Masked messages by id; ids that it does not hold, such as the end of a window, are left out."""
    separator: str
    longest: int
    """Tokens at which a window is cut, special ones included."""

    def events(self, window: npt.NDArray[np.uint32]) -> Events:
        """The tokens of the joined text, with the special tokens of the model around them."""
        text = self.separator.join(self.messages[int(one)] for one in window if int(one) in self.messages)
        ids = self.tokenizer(text, truncation=True, max_length=self.longest, verbose=False)["input_ids"]
        return np.array(ids, np.int64)


def read_windows(folder: Path, messages: Mapping[int, str], separator: str) -> TextWindows:
    """Windows for the masked language model in `folder`; raises ModelError where its tokenizer masks nothing."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} cannot be read: {str(error).splitlines()[0]}") from error
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise ModelError(f"The tokenizer in {folder} has no mask or padding token; name a BERT-family model.")
    # RoBERTa counts positions from 2.
    longest = min(_LONGEST, getattr(config, "max_position_embeddings", _LONGEST) - 2)
    return TextWindows(tokenizer, messages, separator, longest)


class LogFit(EventModel):
    """Masked tokens of a window predicted from the others: 15 % in training and detection.

    In training 80 % of them are masked, 10 % replaced by another token, 10 % left as they are (BERT, arXiv 1810.04805,
    section 3.1). The score is the share of masked tokens outside the top K, one minus the accuracy that the reference
    code thresholds, as the mean over seeded draws of masked tokens.
    """

    title = "LogFiT-style masked language model"
    kinds = tuple(ScoreKind(f"outside_{k}", f"share of masked tokens outside the top {k}") for k in KS)
    DRAWS = 4

    def __init__(self, folder: Path, windows: TextWindows, rank: int) -> None:
        super().__init__()
        self.network = _with_adapters(folder, rank)
        tokenizer = windows.tokenizer
        self._padding, self._mask = int(tokenizer.pad_token_id), int(tokenizer.mask_token_id)
        self._special = np.array(tokenizer.all_special_ids, np.int64)
        self._vocabulary = int(self.network.config.vocab_size)
        self.to("cuda" if torch.cuda.is_available() else "cpu")

    def carried(self) -> dict[str, Tensor]:
        """The adapter's matrices."""
        return {name: tensor for name, tensor in self.network.named_parameters() if tensor.requires_grad}

    def loss(self, windows: Sequence[Events], generator: np.random.Generator) -> Tensor:
        """Mean cross entropy of the masked tokens."""
        rows = self._rows(windows)
        hidden = self._hidden(rows, generator)
        fate = generator.random(rows.shape)
        given = np.where(hidden & (fate < 0.8), self._mask, rows)
        replaced = hidden & (fate >= 0.9)
        given[replaced] = generator.integers(0, self._vocabulary, int(replaced.sum()))
        logits, truth = self._predicted(given, rows, hidden)
        return functional.cross_entropy(logits, truth)

    @torch.no_grad()
    def scores(self, windows: Sequence[Events], seed: int) -> dict[str, Floats]:
        """Means over `DRAWS` seeded draws of masked tokens."""
        parts = even_parts(windows, _LONGEST, _TOKENS)
        return mean_over_draws(self.kinds, windows, parts, self.DRAWS, seed, self._outside)

    def _outside(self, windows: Sequence[Events], generator: np.random.Generator) -> dict[str, Floats]:
        """For each K, the share of a window's masked tokens that are not among the K most probable."""
        rows = self._rows(windows)
        hidden = self._hidden(rows, generator)
        logits, truth = self._predicted(np.where(hidden, self._mask, rows), rows, hidden)
        rank = (logits > logits.gather(1, truth[:, None])).sum(dim=1).cpu().numpy()
        owner, number = np.nonzero(hidden)[0], hidden.sum(axis=1).clip(min=1)
        return {f"outside_{k}": np.bincount(owner, (rank >= k).astype(float), len(rows)) / number for k in KS}

    def _rows(self, windows: Sequence[Events]) -> Events:
        """Windows padded to the longest of them."""
        rows = np.full((len(windows), max(map(len, windows))), self._padding)
        for row, window in zip(rows, windows, strict=True):
            row[: len(window)] = window
        return rows

    def _hidden(self, rows: Events, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Which tokens to mask: each but the special ones with probability 15 %, at least one a row that has any."""
        chance = np.where(np.isin(rows, self._special), np.inf, generator.random(rows.shape))
        lowest = chance.min(axis=1, keepdims=True)
        return (chance < _SHARE) | ((chance == lowest) & np.isfinite(lowest))

    def _predicted(self, given: Events, rows: Events, hidden: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Logits over the vocabulary for the hidden tokens, and what these are."""
        device = next(self.parameters()).device
        seen = torch.from_numpy((rows != self._padding).astype(np.int64)).to(device)
        logits = self.network(input_ids=torch.from_numpy(given).to(device), attention_mask=seen).logits
        truth = torch.from_numpy(rows[hidden]).to(device)
        return logits[torch.from_numpy(hidden).to(device)].float(), truth


def _with_adapters(folder: Path, rank: int) -> Any:  # noqa: ANN401 (a PEFT model)
    """The masked language model in `folder` with LoRA on its queries and values; its own weights stay as they are."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForMaskedLM

    try:
        with quiet_transformers():
            base = AutoModelForMaskedLM.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds no masked language model: {str(error).splitlines()[0]}") from error
    layers = {name.rpartition(".")[2] for name, part in base.named_modules() if isinstance(part, torch.nn.Linear)}
    targets = next((names for names in _TARGETS if layers.issuperset(names)), None)
    if targets is None:
        raise ModelError(f"{folder} has no layers for query and value by any known name; its layers: {sorted(layers)}.")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules=list(targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own use of names that transformers renames
        return get_peft_model(base, config)
