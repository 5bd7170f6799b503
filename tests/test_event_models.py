"""The learned baselines: what they learn, what they flag, and that their federation is the run's own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl.baseline_models import EVENT_MODELS
from fl.event_federation import TrainedBaseline, Window, train_baseline
from fl.event_models import NEVER, DeepLog, FedLog, LogBert, surprise_and_rank
from fl.event_settings import EventBaselines, Method
from fl.event_windows import FIRST, MASK, PADDING, UNKNOWN, WHOLE, histories, masked, padded, vocabulary_of
from fl.federation import Federation

CYCLE = np.array([30, 10, 50, 20, 70, 60], np.uint32)
"""Message ids; each is always followed by the next one."""
METHODS: tuple[Method, ...] = ("deeplog", "logbert", "fedlog")


def _window(start: int, length: int) -> Window:
    return CYCLE[(start + np.arange(length)) % len(CYCLE)]


def _shares(clients: int = 2) -> list[list[Window]]:
    return [[_window(start + client, 8 + start % 3) for start in range(12)] for client in range(clients)]


def _trained(method: Method, shares: list[list[Window]], seed: int = 0, **settings: Any) -> TrainedBaseline:  # noqa: ANN401
    few: dict[str, Any] = {"baseline_rounds": 2, "baseline_steps": 2, "baseline_windows": 4} | settings
    federation = Federation(clients=len(shares), fraction=1.0, seed=seed)
    return train_baseline(method, shares, EventBaselines((method,), **few), federation)


def _state(trained: TrainedBaseline) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in trained.model.state_dict().items()}


def _swapped(window: Window) -> Window:
    swapped = window.copy()
    swapped[[4, 5]] = swapped[[5, 4]]
    return swapped


@pytest.mark.parametrize(("method", "rounds"), [("deeplog", 4), ("fedlog", 3)])
def test_a_cycle_is_learned_and_an_event_out_of_turn_stands_out(method: Method, rounds: int) -> None:
    trained = _trained(method, _shares(), baseline_rounds=rounds, baseline_steps=10, baseline_windows=12)
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    normal = [_window(start, 9) for start in range(6)]
    scores = trained.scores([*normal, _swapped(_window(0, 9))], seed=0)["surprise"]
    assert scores[-1] > 2 * scores[:-1].max()


def test_a_masked_model_learns_an_order_and_events_out_of_turn_stand_out() -> None:
    shares = [[_window(0, length) for length in (8, 9, 10)]] * 2
    trained = _trained("logbert", shares, baseline_rounds=5, baseline_steps=10, baseline_windows=3)
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    windows = [_window(0, 9), _window(0, 10), _swapped(_window(0, 9))]
    scores = trained.scores(windows, seed=0)["surprise"]
    assert scores[-1] > 2 * scores[:-1].max()


@pytest.mark.parametrize("method", ["deeplog", "fedlog"])
def test_a_message_that_training_never_saw_is_outside_every_list_of_candidates(method: Method) -> None:
    found = _trained(method, _shares()).scores([np.array([30, 10, 99], np.uint32), _window(0, 3)], seed=0)
    assert found["surprise"][0] == pytest.approx(NEVER)
    assert found["rank"].tolist()[0] == len(CYCLE) + 1
    assert found["rank"][1] <= len(CYCLE)


def test_surprise_and_rank_are_those_of_a_sorted_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    events = np.random.default_rng(1).integers(0, 7, 50)
    surprise, rank = surprise_and_rank(torch.from_numpy(logits), torch.from_numpy(events + FIRST))
    odds = np.exp(logits.astype(np.float64))
    expected = -np.log(odds[np.arange(50), events] / odds.sum(axis=1))
    order = np.argsort(-logits, axis=1)
    assert surprise.numpy() == pytest.approx(expected, abs=1e-5)
    assert rank.tolist() == [order[i].tolist().index(event) + 1 for i, event in enumerate(events)]


@pytest.mark.parametrize("kind", [DeepLog, FedLog])
def test_the_loss_over_distinct_histories_is_the_mean_over_every_event(kind: type[DeepLog] | type[FedLog]) -> None:
    windows = [_window(start % 3, 5 + start % 2) for start in range(8)]
    vocabulary = vocabulary_of(windows)
    model = kind(vocabulary)
    losses = []
    for window in (vocabulary.events(window) for window in windows):
        for place, event in enumerate(window):
            before = [PADDING] * 10 + window[:place].tolist()
            logits = model(torch.tensor([before[-10:]]))
            losses.append(functional.cross_entropy(logits, torch.tensor([event - FIRST])).item())
    found = model.loss([vocabulary.events(window) for window in windows], np.random.default_rng(0))
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_history_holds_only_what_came_before() -> None:
    events = np.array([5, 6, 7])
    found, owner = histories([events, np.array([9])], 2)
    assert found.tolist() == [[PADDING, PADDING, 5], [PADDING, 5, 6], [5, 6, 7], [PADDING, PADDING, 9]]
    assert owner.tolist() == [0, 0, 0, 1]


def test_a_temporal_convolution_does_not_see_the_future() -> None:
    block = FedLog(vocabulary_of([CYCLE])).blocks
    values = torch.randn(1, 32, 10)
    changed = values.clone()
    changed[:, :, 6:] += 1
    difference = (block(values) - block(changed)).abs().amax(dim=1)[0]
    assert (difference[:6] == 0).all()
    assert (difference[6:] > 0).all()


def test_events_are_masked_in_the_share_asked_for_and_nothing_else_is() -> None:
    rows = padded([np.arange(FIRST, FIRST + n) for n in (1, 40, 200)], longest=150)
    assert rows.shape == (3, 151)
    hidden = masked(rows, 0.65, np.random.default_rng(0))
    assert not hidden[(rows == PADDING) | (rows == WHOLE)].any()
    assert hidden.any(axis=1).all()
    assert hidden[2, 1:].mean() == pytest.approx(0.65, abs=0.1)


def test_padding_changes_no_score_of_a_masked_model() -> None:
    vocabulary = vocabulary_of([CYCLE])
    model = LogBert(vocabulary).eval()
    short = np.array([[WHOLE, MASK, FIRST, FIRST + 1]])
    longer = np.pad(short, ((0, 0), (0, 5)), constant_values=PADDING)
    alone, beside = model(torch.from_numpy(short)), model(torch.from_numpy(longer))
    assert torch.allclose(alone, beside[:, :4], atol=1e-5)


def test_unknown_messages_have_a_number_of_their_own() -> None:
    vocabulary = vocabulary_of([CYCLE])
    assert vocabulary.events(np.array([10, 11, 70, 71], np.uint32)).tolist() == [FIRST, UNKNOWN, FIRST + 5, UNKNOWN]


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_the_mean_of_its_clients_weighted_by_their_windows(method: Method) -> None:
    both = _shares()
    both[1] = both[1][:7]
    once: dict[str, Any] = {"baseline_rounds": 1}
    # A client alone starts from the same weights and has the same seed, since the others have no windows.
    alone = [_state(_trained(method, [both[0], []], **once)), _state(_trained(method, [[], both[1]], **once))]
    together = _state(_trained(method, both, **once))
    for name, found in together.items():
        expected = np.average([part[name] for part in alone], axis=0, weights=[12, 7])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_training_and_scores_depend_on_the_seed_and_nothing_else(method: Method) -> None:
    torch.manual_seed(5)
    first = _trained(method, _shares(), seed=1)
    torch.manual_seed(6)
    again, other = _trained(method, _shares(), seed=1), _trained(method, _shares(), seed=2)
    assert all(np.array_equal(value, _state(again)[name]) for name, value in _state(first).items())
    assert not all(np.array_equal(value, _state(other)[name]) for name, value in _state(first).items())
    windows = [_window(start, 9) for start in range(3)]
    for name, values in first.scores(windows, seed=3).items():
        assert np.array_equal(values, again.scores(windows, seed=3)[name])


def test_a_message_of_every_model_is_small() -> None:
    vocabulary = vocabulary_of([np.arange(34, dtype=np.uint32)])
    sizes = {method: sum(p.numel() for p in kind(vocabulary).parameters()) for method, kind in EVENT_MODELS.items()}
    assert max(sizes.values()) < 120_000


def test_a_baseline_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        EventBaselines(("deeplog", "deeplog"))
