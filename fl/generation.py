"""What a model writes after the beginning of a log, greedily or drawn with a seed; the base model beside the tuned."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl.adapter import load_adapter_arrays, without_adapter
from fl.errors import ModelError
from fl.hyperparameters import Tuning
from fl.model import LoadedModel
from fl.scoring import score_tokens


@dataclass(frozen=True)
class Sampling:
    """How a model goes on."""

    tokens: int = 40
    """At most so many; a model may end the window before."""
    temperature: float = 0.0
    """0: always the most probable token; above: drawn from the probabilities, flatter the higher it is."""
    seed: int = 0
    """Of the draws; both models get the same."""


@dataclass(frozen=True)
class Written:
    """What one model makes of a beginning."""

    token_ids: list[int]
    """What it writes, the end token left out."""
    ended: bool
    """Whether it ended the window itself."""
    nats: float | None
    """Its mean surprise at a token of what really followed, end included; none where that is not known."""


def write_on(
    model: Any,  # noqa: ANN401 (any transformers or PEFT causal model)
    loaded: LoadedModel,
    prefix: Sequence[int],
    sampling: Sampling,
    followed: Sequence[int] | None = None,
) -> Written:
    """Have a model go on from `prefix`; `followed` are the tokens that really came next."""
    if not len(prefix):
        raise ModelError("There is nothing to go on from; give a prefix.")
    ids = torch.tensor([list(map(int, prefix))], device=loaded.device)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if sampling.temperature > 0:
        how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    model.eval()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sampling.seed)
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.tokens,
            eos_token_id=loaded.end_token_id,
            pad_token_id=loaded.end_token_id,
            use_cache=True,
            **how,
        )[0, ids.shape[1] :].tolist()
    ended = bool(written) and written[-1] == loaded.end_token_id
    return Written(written[:-1] if ended else written, ended, _surprise(model, loaded, prefix, followed))


def _surprise(
    model: Any,  # noqa: ANN401
    loaded: LoadedModel,
    prefix: Sequence[int],
    followed: Sequence[int] | None,
) -> float | None:
    if followed is None:
        return None
    scores = score_tokens(model, loaded, [np.array([*prefix, *followed], np.int64)], top=1)
    # The first token asked for is the second of the window.
    return float(-scores.log_probabilities[0][len(prefix) - 1 :].astype(np.float64).mean())


@contextmanager
def base_model(
    model: torch.nn.Module, tuning: Tuning, untouched: Mapping[str, np.ndarray], tuned: Mapping[str, np.ndarray]
) -> Iterator[torch.nn.Module]:
    """The model without its tuning, for the time of a `with` block.

    An adapter is switched off; where all weights were tuned, those before (`untouched`) take their place.
    """
    if tuning.has_rank:
        with without_adapter(model) as base:
            yield base
        return
    load_adapter_arrays(model, untouched)
    try:
        yield model
    finally:
        load_adapter_arrays(model, tuned)
