"""Scores by the prefix tree equal those of the plain model, one window at a time."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fl.anomaly_scores import anomaly_score
from fl.errors import ScoreError
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
