"""The masked language model of a window's text: what it reads, learns, sends and scores, on a tiny random BERT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert_model import MESSAGES, SPECIAL, save_tiny_bert

from benchmarks.tiny_model import save_tiny_tokenizer
from fl.baseline_models import Text
from fl.errors import ModelError
from fl.event_federation import TrainedBaseline, train_baseline
from fl.event_settings import EventBaselines
from fl.federation import Federation
from fl.masked_text import KS, LogFit, read_windows

SEPARATOR = " ;-; "


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers of 32 with random weights."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


def _window(*ids: int) -> np.ndarray:
    return np.array(ids, np.uint32)


SHARES = [[_window(0, 1, 2), _window(0, 0, 1)], [_window(0, 1, 2), _window(1, 2), _window(0, 2)]]


def _trained(bert: Path, shares: list[list[np.ndarray]] = SHARES, seed: int = 0, **settings: Any) -> TrainedBaseline:  # noqa: ANN401
    few: dict[str, Any] = {"baseline_rounds": 1, "baseline_steps": 1, "baseline_windows": 4} | settings
    baselines = EventBaselines(("logfit",), masked_model=str(bert), **few)
    federation = Federation(clients=len(shares), fraction=1.0, seed=seed)
    return train_baseline("logfit", shares, baselines, federation, text=Text(bert, MESSAGES, SEPARATOR))


def test_a_window_is_read_as_its_joined_text_with_special_tokens_and_cut_where_the_model_ends(bert: Path) -> None:
    reader = read_windows(bert, MESSAGES, SEPARATOR)
    end_of_window = np.iinfo(np.uint32).max
    ids = reader.events(_window(1, 3, end_of_window))
    assert ids.tolist() == reader.tokenizer(f"{MESSAGES[1]}{SEPARATOR}{MESSAGES[3]}")["input_ids"]
    tokens = reader.tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert len(reader.events(_window(*[0] * 50))) == 62


def test_only_the_adapters_of_queries_and_values_are_trained_and_sent(bert: Path) -> None:
    trained = _trained(bert, masked_rank=3)
    # Two layers, query and value, A of 3 x 32 and B of 32 x 3 each.
    assert trained.parameters == 2 * 2 * 2 * 3 * 32
    assert trained.message_bytes == 4 * trained.parameters
    from transformers import BertForMaskedLM

    untouched = BertForMaskedLM.from_pretrained(bert).state_dict()
    found = trained.model.get_submodule("network").state_dict()
    own = {name.replace(".base_layer", "").removeprefix("base_model.model."): found[name] for name in found}
    assert set(untouched) <= set(own)
    assert all(torch.equal(own[name].cpu(), tensor) for name, tensor in untouched.items())


def test_a_round_is_the_mean_of_its_clients_weighted_by_their_windows(bert: Path) -> None:
    def adapter(trained: TrainedBaseline) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in trained.model.carried().items()}

    alone = [adapter(_trained(bert, shares)) for shares in ([SHARES[0], []], [[], SHARES[1]])]
    for name, found in adapter(_trained(bert)).items():
        expected = np.average([part[name] for part in alone], axis=0, weights=[2, 3])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_steps_lower_the_loss_of_the_masks_they_see(bert: Path) -> None:
    reader = read_windows(bert, MESSAGES, SEPARATOR)
    torch.manual_seed(0)
    model = LogFit(bert, reader, 16).eval()
    windows = [reader.events(window) for window in SHARES[1]]
    optimizer = torch.optim.Adam(model.carried().values(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = model.loss(windows, np.random.default_rng(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01


def test_fifteen_percent_are_masked_and_never_a_special_token(bert: Path) -> None:
    reader = read_windows(bert, MESSAGES, SEPARATOR)
    model = LogFit(bert, reader, 2)
    rows = model._rows([reader.events(_window(*[0] * 9)), reader.events(_window(2))] * 200)
    hidden = model._hidden(rows, np.random.default_rng(0))
    special = np.isin(rows, reader.tokenizer.convert_tokens_to_ids(SPECIAL))
    assert not (hidden & special).any()
    assert hidden.any(axis=1).all()
    long = ~special & (np.arange(len(rows)) % 2 == 0)[:, None]
    assert hidden[long].mean() == pytest.approx(0.15, abs=0.01)


def test_a_score_is_the_share_of_masked_tokens_that_a_plain_pass_has_outside_its_best_k(bert: Path) -> None:
    reader = read_windows(bert, MESSAGES, SEPARATOR)
    torch.manual_seed(1)
    model = LogFit(bert, reader, 4).eval()
    windows = [reader.events(window) for window in (_window(0, 1, 3), _window(2), _window(1, 1))]
    rows = model._rows(windows)
    hidden = model._hidden(rows, np.random.default_rng(5))
    found = model._outside(windows, np.random.default_rng(5))
    for number, window in enumerate(windows):
        places = np.flatnonzero(hidden[number, : len(window)])
        given = window.copy()
        given[places] = reader.tokenizer.mask_token_id
        with torch.no_grad():
            logits = model.network(input_ids=torch.from_numpy(given)[None].to(model.network.device)).logits[0].cpu()
        for k in KS:
            best = [logits[place].topk(k).indices.tolist() for place in places]
            outside = [token not in top for token, top in zip(window[places], best, strict=True)]
            assert found[f"outside_{k}"][number] == pytest.approx(np.mean(outside)), (number, k)


def test_scores_depend_on_the_seed_and_lie_between_none_and_all(bert: Path) -> None:
    windows = [_window(0, 1, 2), _window(3, 3)]
    first, again = (_trained(bert).scores(windows, seed=2) for _ in range(2))
    assert list(first) == [f"outside_{k}" for k in KS]
    for name, values in first.items():
        assert np.array_equal(values, again[name])
        assert ((values >= 0) & (values <= 1)).all()
    assert (first["outside_1"] >= first["outside_10"]).all()


def test_what_is_no_masked_language_model_is_refused(bert: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no mask or padding token"):
        read_windows(tiny_model, MESSAGES, SEPARATOR)
    reader = read_windows(bert, MESSAGES, SEPARATOR)
    with pytest.raises(ModelError, match="no masked language model"):
        LogFit(tiny_model, reader, 2)
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="no masked language model"):
        LogFit(tmp_path, reader, 2)
    with pytest.raises(ValueError, match="give masked_model"):
        EventBaselines(("logfit",))
    with pytest.raises(ModelError, match="reads text"):
        train_baseline("logfit", SHARES, EventBaselines(("logfit",), masked_model="x"), Federation(clients=2))
