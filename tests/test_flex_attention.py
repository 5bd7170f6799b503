"""FlexAttention over packs: its mask is the ancestors' mask, block by block, and its results are the plain model's."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl import flex_attention
from fl.flex_attention import BLOCK, block_mask, padded_length, subtree_ends
from fl.prefix_tree import Pack, build_tree, cut_packs

END = 9
WINDOWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=20)


def _packs(windows: list[np.ndarray], budget: int, *, share: bool = True) -> list[Pack]:
    return list(cut_packs(build_tree(windows, END, share=share), budget))


def _logs(seed: int, count: int, longest: int) -> list[np.ndarray]:
    """Windows that share prefixes of any length, among them some of one token and some that are equal."""
    generator = np.random.default_rng(seed)
    texts = generator.integers(1, 400, (3, longest))
    windows = [texts[generator.integers(3)][: generator.integers(1, longest)].copy() for _ in range(count)]
    for window in windows[::3]:
        window[generator.integers(len(window)) :] += 17
    return [*windows, windows[0], windows[0][:1], np.array([5])]


def _paths(pack: Pack, length: int) -> np.ndarray:
    """Which tokens each may attend to, by walking to the token before it; padding attends to itself.

    The token before is the last one that stands one place nearer to a window's begin: an oracle that knows nothing of
    chains, stems or ends.
    """
    allowed = np.eye(length, dtype=bool)
    latest: dict[int, int] = {}
    for token, position in enumerate(pack.positions.tolist()):
        if position:
            allowed[token] |= allowed[latest[position - 1]]
        latest[position] = token
    return allowed


@given(WINDOWS, st.integers(1, 40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_token_is_on_a_path_exactly_between_itself_and_the_end_of_its_subtree(
    windows: list[list[int]], budget: int, share: bool
) -> None:
    for pack in _packs([np.array(window) for window in windows], budget, share=share):
        length = len(pack.token_ids) + 5
        ends = subtree_ends(pack, length)
        query, key = np.arange(length)[:, None], np.arange(length)[None]
        np.testing.assert_array_equal((key <= query) & (query < ends[None]), _paths(pack, length))


def _check_blocks(pack: Pack) -> None:
    """Every block is listed as what it is: no block of paths left out, none listed twice, full ones full."""
    length = padded_length(len(pack.token_ids))
    mask = block_mask(pack, "cpu")
    assert mask.shape == (1, 1, length, length)
    allowed = _paths(pack, length).reshape(length // BLOCK, BLOCK, length // BLOCK, BLOCK)
    share = allowed.mean(axis=(1, 3))
    for counts, numbers, expected in (
        (mask.kv_num_blocks, mask.kv_indices, (share > 0) & (share < 1)),
        (mask.full_kv_num_blocks, mask.full_kv_indices, share == 1),
    ):
        for row, (count, order) in enumerate(zip(counts[0, 0].tolist(), numbers[0, 0].tolist(), strict=True)):
            assert order[:count] == np.flatnonzero(expected[row]).tolist()
    for counts, numbers, expected in (
        (mask.q_num_blocks, mask.q_indices, (share > 0) & (share < 1)),
        (mask.full_q_num_blocks, mask.full_q_indices, share == 1),
    ):
        for column, (count, order) in enumerate(zip(counts[0, 0].tolist(), numbers[0, 0].tolist(), strict=True)):
            assert order[:count] == np.flatnonzero(expected[:, column]).tolist()
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    inside = mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key).numpy()
    np.testing.assert_array_equal(inside, _paths(pack, length))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("budget", "share"), [(300, True), (700, True), (10_000, True), (900, False)])
def test_blocks_are_those_of_the_dense_mask(seed: int, budget: int, share: bool) -> None:
    packs = _packs(_logs(seed, 12, 250), budget, share=share)
    assert len(packs) > 1 or budget > 300
    for pack in packs:
        _check_blocks(pack)


@pytest.mark.parametrize(
    "windows",
    [
        [np.array([3])],
        [np.array([3]), np.array([4]), np.array([3])],
        [np.arange(10, 1010)],
        [np.arange(10, 266)] * 4,
        [np.arange(10, 10 + length) for length in (128, 256, 257, 384)],
        [np.append(np.arange(10, 138), tail) for tail in (np.arange(200), np.arange(5, 133))],
    ],
    ids=["one token", "single tokens", "one long window", "equal windows", "nested windows", "cut at a block's edge"],
)
def test_blocks_of_extreme_packs(windows: list[np.ndarray]) -> None:
    for pack in _packs(windows, 100_000):
        _check_blocks(pack)


@pytest.fixture
def by_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention in torch's own unfused form on a CPU, which by default refuses gradients there."""
    from torch.nn.attention import flex_attention as torchs

    from fl import tree_attention

    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex_attention, "_compiled", lambda: torchs.flex_attention)
    flex = tree_attention.Choice("flex", "a test")
    monkeypatch.setattr(tree_attention, "choose_attention", lambda *_: flex)
    yield


@pytest.fixture
def by_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from fl import tree_attention

    monkeypatch.setattr(tree_attention, "choose_attention", lambda *_: tree_attention.Choice("dense", "a test"))


@pytest.mark.parametrize("way", ["by_flex", "by_dense_mask"])
@pytest.mark.parametrize("budget", [90, 100_000])
def test_scores_are_those_of_the_plain_model(
    way: str, budget: int, tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    from fl.model import load_model
    from fl.scoring import score_tokens

    load_model.cache_clear()
    loaded = load_model(tiny_model)
    windows = _logs(1, 9, 70)
    request.getfixturevalue(way)
    scored = score_tokens(loaded.model, loaded, windows, token_budget=budget)
    for window, ranks, logs in zip(windows, scored.ranks, scored.log_probabilities, strict=True):
        closed = torch.tensor(np.append(window, loaded.end_token_id))
        with torch.no_grad():
            logits = loaded.model(closed[None]).logits[0, :-1].double()
        true = logits.gather(1, closed[1:, None])
        np.testing.assert_array_equal(ranks, (logits > true).sum(1).numpy())
        np.testing.assert_allclose(logs, (true[:, 0] - logits.logsumexp(1)).numpy(), atol=1e-4)


@pytest.mark.parametrize("way", ["by_flex", "by_dense_mask"])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("budget", [150, 100_000])
def test_gradients_are_those_of_a_padded_batch(
    way: str, kind: str, budget: int, tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    from fl.adapter import Tuning, adapter_arrays, attach_adapter, load_adapter_arrays
    from fl.local_training import accumulate_gradients
    from fl.model import load_model

    load_model.cache_clear()
    loaded = load_model(tiny_model)
    model = attach_adapter(loaded, Tuning(kind=kind), seed=1)  # type: ignore[arg-type]
    if kind == "lora":  # away from B = 0, where half of the gradients vanish
        drawn = np.random.default_rng(2)
        arrays = adapter_arrays(model)
        load_adapter_arrays(model, {n: drawn.normal(0, 0.05, a.shape).astype(np.float32) for n, a in arrays.items()})
    windows = _logs(2, 9, 60)
    closed = [torch.tensor(np.append(window, loaded.end_token_id)) for window in windows]
    rows = torch.nn.utils.rnn.pad_sequence(closed, batch_first=True)
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(w) for w in closed], batch_first=True)
    logits = model(input_ids=rows, attention_mask=seen).logits[:, :-1].double()
    labels = rows[:, 1:].masked_fill(seen[:, 1:] == 0, -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    expected.backward()
    plain = {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    request.getfixturevalue(way)
    loss, _, _ = accumulate_gradients(model, loaded, windows, budget)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    found = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.usefixtures("by_flex")
def test_the_trial_finds_a_kernel_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flex_attention.attend
    monkeypatch.setattr(flex_attention.importlib.util, "find_spec", lambda _: object())
    with torch.inference_mode():  # as when scoring asks first
        assert flex_attention.fault("cpu", torch.float32, 6, 2, 16) is None

    def all_see_all(*given: object) -> torch.Tensor:
        query, key, value = (part for part in given[:3] if isinstance(part, torch.Tensor))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    monkeypatch.setattr(flex_attention, "attend", all_see_all)
    assert "off by" in str(flex_attention.fault("cpu", torch.float32, 6, 2, 16))
    monkeypatch.setattr(flex_attention, "attend", lambda *given: right(*given) * float("nan"))
    assert "off by inf" in str(flex_attention.fault("cpu", torch.float32, 6, 2, 16))


def test_where_it_cannot_be_compiled_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("No valid triton configs.\nOutOfResources: shared memory")

    monkeypatch.setattr(flex_attention.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(flex_attention, "attend", fails)
    assert flex_attention.fault("cpu", torch.float32, 6, 2, 16) == "RuntimeError: No valid triton configs."
    monkeypatch.setattr(flex_attention.importlib.util, "find_spec", lambda _: None)
    assert "triton" in str(flex_attention.fault("cpu", torch.float32, 6, 2, 16))


@pytest.mark.long
def test_packs_of_any_size_are_compiled_once_for_training_and_once_for_scoring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond torch's limit of compilations it would hold all scores in memory instead."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention import flex_attention as torchs

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(torchs.flex_attention, dynamic=True, fullgraph=True, backend=counter)
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_compiled", lambda: compiled)
    for longest, trains in itertools.product((40, 330, 1100), (False, True)):
        (pack,) = _packs(_logs(longest, 3, longest), 100_000)
        length = padded_length(len(pack.token_ids))
        query, key, value = (torch.randn(1, heads, length, 16, requires_grad=trains) for heads in (6, 3, 3))
        with torch.inference_mode(not trains):
            out = flex_attention.attend(query, key, value, block_mask(pack, "cpu"), 0.3)
            if trains:
                out.sum().backward()
    assert counter.frame_count == 2


def test_ranks_of_many_edges_at_once_are_those_of_each() -> None:
    from fl.scoring import ranks_at_once

    drawn = np.random.default_rng(4)
    logits, rows = drawn.integers(0, 30, (7, 90)).astype(np.float32), np.sort(drawn.integers(0, 7, 25))
    true = np.array([logits[row, drawn.integers(90)] for row in rows])
    expected = [sorted(logits[row].tolist(), reverse=True).index(value) for row, value in zip(rows, true, strict=True)]
    found = ranks_at_once(torch.from_numpy(logits), torch.from_numpy(rows), torch.from_numpy(true))
    assert found.tolist() == expected


def test_logits_of_a_bfloat16_model_are_not_rounded_into_ties() -> None:
    from fl.tree_attention import float_logits

    torch.manual_seed(0)
    head = torch.nn.Linear(64, 4000, bias=False).to(torch.bfloat16)
    states = 20 * torch.randn(3, 64).to(torch.bfloat16)
    logits = float_logits(head, states)
    exact = states.double() @ head.weight.double().T
    assert (logits - exact).abs().max() < 1e-4
    assert all(
        len(row.unique()) > 3950 > 2 * len(rounded.unique()) for row, rounded in zip(logits, head(states), strict=True)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "key_heads"), [(9, 3), (15, 5), (32, 32)])
def test_on_cuda_the_trial_passes_for_the_heads_of_smollm(dtype: torch.dtype, heads: int, key_heads: int) -> None:
    assert flex_attention.fault("cuda", dtype, heads, key_heads, 64) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["flex", "dense"])
def test_on_cuda_scores_are_those_of_the_cpu(kind: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl import tree_attention
    from fl.model import load_model
    from fl.scoring import score_tokens

    load_model.cache_clear()
    loaded = load_model(tiny_model, device="cpu")
    windows = _logs(4, 9, 200)
    expected = score_tokens(loaded.model, loaded, windows)
    choice = tree_attention.Choice(kind, "a test")  # type: ignore[arg-type]
    monkeypatch.setattr(tree_attention, "choose_attention", lambda *_: choice)
    loaded.model.to("cuda")
    found = score_tokens(loaded.model, dataclasses.replace(loaded, device="cuda"), windows, token_budget=500)
    load_model.cache_clear()
    for ours, theirs in zip(found.log_probabilities, expected.log_probabilities, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
