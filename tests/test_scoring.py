"""Scores by the prefix tree equal those of the plain model, one window at a time."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fl.anomaly_scores import anomaly_score
from fl.errors import ModelError, ScoreError
from fl.model import LoadedModel, load_model
from fl.scoring import message_surprise, score_sequences, score_tokens


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def windows() -> list[np.ndarray]:
    """Windows that share prefixes, as logs do: random cuts of three random texts, some with a changed token."""
    generator = np.random.default_rng(7)
    texts = generator.integers(1, 512, (3, 60))
    cut = [texts[generator.integers(3)][: generator.integers(1, 60)].copy() for _ in range(25)]
    for window in cut[::3]:
        window[generator.integers(len(window))] = 17
    return cut


def _plain(loaded: LoadedModel, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks, log-probabilities and logits by the model's own forward pass, in double precision after the logits."""
    closed = torch.tensor(np.append(window, loaded.end_token_id))
    with torch.no_grad():
        logits = loaded.model(closed[None]).logits[0, :-1].double()
    true = logits.gather(1, closed[1:, None])
    return (logits > true).sum(1).numpy(), (true[:, 0] - logits.logsumexp(1)).numpy(), logits.numpy()


@pytest.mark.parametrize("budget", [40, 100, 4000])
def test_ranks_and_log_probabilities_equal_the_plain_ones(
    tiny: LoadedModel, windows: list[np.ndarray], budget: int
) -> None:
    scored = score_tokens(tiny.model, tiny, windows, token_budget=budget)
    for window, ranks, logs in zip(windows, scored.ranks, scored.log_probabilities, strict=True):
        true_ranks, true_logs, _ = _plain(tiny, window)
        np.testing.assert_allclose(logs, true_logs, atol=1e-4)
        np.testing.assert_array_equal(ranks, true_ranks)


_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 1.0,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "pad_token_id": 0,
}


def _random_model(kind: str, folder: Path, **more: object) -> Path:
    """A seeded random model of a kind that transformers knows, with logits as large as trained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(_SHAPE | more))
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def no_model_kept() -> Iterator[None]:
    yield
    load_model.cache_clear()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mistral", {"sliding_window": 60}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
        ("qwen3", {}),
        ("smollm3", {}),
        ("gemma3_text", {"sliding_window": 60}),
    ],
)
@pytest.mark.usefixtures("no_model_kept")
def test_other_models_of_llamas_form_are_scored_as_they_score_themselves(
    kind: str, more: dict[str, object], windows: list[np.ndarray], tmp_path: Path
) -> None:
    loaded = load_model(_random_model(kind, tmp_path, **more))
    for window, logs in zip(windows, score_tokens(loaded.model, loaded, windows).log_probabilities, strict=True):
        np.testing.assert_allclose(logs, _plain(loaded, window)[1], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("granite", {"logits_scaling": 8.0}, "scales or caps its logits"),
        ("cohere", {"logit_scale": 0.0625}, "scales or caps its logits"),
        ("gemma3_text", {"final_logit_softcapping": 5.0}, "scales or caps its logits"),
        ("gemma2", {}, "does not support an attention implementation"),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "not those of Llama"),
        ("jamba", {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4}, "not those of Llama"),
    ],
)
@pytest.mark.usefixtures("no_model_kept")
def test_a_model_that_does_more_than_llama_is_refused_when_it_is_loaded(
    kind: str, more: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=told) as raised:
        load_model(_random_model(kind, tmp_path, **more))
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("no_model_kept")
def test_windows_are_scored_where_the_models_sliding_window_holds_them_and_refused_where_not(tmp_path: Path) -> None:
    loaded = load_model(_random_model("mistral", tmp_path, sliding_window=8))
    fitting = [np.arange(1, 9), np.arange(3, 9)]
    with pytest.raises(ModelError, match=r"to 8 tokens back, and a window has 9; give tokens\.max_tokens=8"):
        score_tokens(loaded.model, loaded, [*fitting, np.arange(1, 10)])
    for window, logs in zip(fitting, score_tokens(loaded.model, loaded, fitting).log_probabilities, strict=True):
        np.testing.assert_allclose(logs, _plain(loaded, window)[1], atol=1e-2)


@pytest.mark.parametrize("budget", [40, 100_000])
def test_shared_prefixes_are_computed_once(tiny: LoadedModel, windows: list[np.ndarray], budget: int) -> None:
    prefixes = {tuple(window[:length]) for window in windows for length in range(1, len(window) + 1)}
    assert score_tokens(tiny.model, tiny, windows, token_budget=budget).computed_tokens == len(prefixes)


def test_columns_are_what_they_are_called(tiny: LoadedModel, windows: list[np.ndarray]) -> None:
    starts = [np.array([0, *range(5, len(window), 7)]) for window in windows]
    columns = score_sequences(tiny.model, tiny, windows, starts, by_message=True)
    for row, (window, start) in enumerate(zip(windows, starts, strict=True)):
        ranks, logs, logits = _plain(tiny, window)
        surprise = -logs
        best = np.argsort(-logits, axis=1)
        for k in (1, 3, 5, 10):
            assert columns[f"top_{k}"][row] == pytest.approx((ranks < k).mean())
            # The reference code's loop, as it counts: does the token occur anywhere in the predictions?
            predictions = best[:, :k]
            assert columns[f"unaligned_{k}"][row] == pytest.approx(sum(t in predictions for t in window) / len(window))
        assert columns["mean_token"][row] == pytest.approx(surprise.mean(), abs=1e-4)
        assert columns["max_token"][row] == pytest.approx(surprise.max(), abs=1e-4)
        cuts = [0, *(int(s) - 1 for s in start[1:]), len(surprise) - 1, len(surprise)]
        messages = [surprise[max(a, 0) : b].sum() for a, b in itertools.pairwise(cuts)]
        assert columns["message_surprise"][row] == pytest.approx(messages, abs=1e-3)
        assert columns["max_message"][row] == pytest.approx(max(messages), abs=1e-3)
        assert columns["mean_message"][row] == pytest.approx(np.mean(messages), abs=1e-3)


def test_the_end_of_a_window_is_scored_as_a_message() -> None:
    surprise = np.array([1.0, 2.0, 4.0, 8.0])
    assert message_surprise(surprise, np.array([0, 2])).tolist() == [1.0, 6.0, 8.0]


def test_every_score_is_higher_for_a_worse_prediction() -> None:
    columns = {"top_1": np.array([0.9, 0.2]), "unaligned_3": np.array([1.0, 0.5]), "max_token": np.array([0.1, 7.0])}
    for name, k in (("top_k", 1), ("unaligned", 3), ("max_token", None)):
        good, bad = anomaly_score(columns, name, k)
        assert bad > good


def test_an_unknown_score_is_named_in_one_line() -> None:
    with pytest.raises(ScoreError, match="No score 'perplexity'"):
        anomaly_score({"top_1": np.zeros(1)}, "perplexity")


@pytest.mark.weights
def test_smollm2_scores_equal_the_plain_ones(smollm2: Path) -> None:
    loaded = load_model(smollm2)
    generator = np.random.default_rng(3)
    text = generator.integers(100, 20_000, 80)
    windows = [text, text[:50], np.concatenate([text[:40], text[10:30]])]
    scored = score_tokens(loaded.model, loaded, windows, token_budget=100)
    for window, logs, ranks in zip(windows, scored.log_probabilities, scored.ranks, strict=True):
        true_ranks, true_logs, logits = _plain(loaded, window)
        np.testing.assert_allclose(logs, true_logs, atol=1e-4)
        for position in np.flatnonzero(ranks != true_ranks):
            closed = np.append(window, loaded.end_token_id)
            gap = np.abs(logits[position] - logits[position, closed[position + 1]])
            assert np.sort(gap)[1] < 1e-4, "ranks may differ only where logits tie"
