"""The prefix tree holds every distinct prefix once, and its packs lose and repeat no edge."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.prefix_tree import PrefixTree, ancestor_mask, build_tree, cut_packs

END = 9
WINDOWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=20)


def _arrays(windows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(window) for window in windows]


def _prefixes(windows: list[list[int]]) -> Counter[tuple[int, ...]]:
    """Every non-empty prefix of every closed window, with the number of windows through it."""
    closed = [(*window, END) for window in windows]
    return Counter(window[:length] for window in closed for length in range(1, len(window) + 1))


def _prefix_of_nodes(tree: PrefixTree, windows: list[list[int]]) -> dict[int, tuple[int, ...]]:
    return {
        int(node): tuple(int(tree.tokens[step]) for step in path[: depth + 1])
        for path in tree.paths
        for depth, node in enumerate(path)
    }


@given(WINDOWS)
def test_nodes_are_the_distinct_prefixes_with_their_windows(windows: list[list[int]]) -> None:
    tree = build_tree(_arrays(windows), END)
    spelled = _prefix_of_nodes(tree, windows)
    assert {prefix: int(tree.weights[node]) for node, prefix in spelled.items()} == _prefixes(windows)
    assert len(spelled) == len(tree.tokens)


@given(WINDOWS)
def test_paths_spell_the_windows(windows: list[list[int]]) -> None:
    tree = build_tree(_arrays(windows), END)
    for window, path in zip(windows, tree.paths, strict=True):
        assert tree.tokens[path].tolist() == [*window, END]


@given(WINDOWS, st.integers(1, 40))
@settings(max_examples=200)
def test_packs_hold_every_edge_once_whatever_the_budget(windows: list[list[int]], budget: int) -> None:
    tree = build_tree(_arrays(windows), END)
    seen: Counter[int] = Counter()
    spelled = _prefix_of_nodes(tree, windows)
    longest = max(map(len, windows))
    for pack in cut_packs(tree, budget):
        assert len(pack.token_ids) <= max(budget, longest)
        seen.update(pack.edges.tolist())
        for source, target, edge, weight in zip(
            pack.edge_source, pack.edge_target, pack.edges, pack.edge_weights, strict=True
        ):
            prefix = spelled[int(edge)]
            path = np.flatnonzero(ancestor_mask(pack)[source])
            assert tuple(pack.token_ids[path]) == prefix[:-1]
            assert pack.positions[path].tolist() == list(range(len(prefix) - 1))
            assert (target, weight) == (prefix[-1], tree.weights[edge])
    assert seen == Counter({node: 1 for node in range(len(tree.tokens)) if tree.depths[node] > 0})


@given(WINDOWS, st.integers(1, 40), st.booleans())
@settings(max_examples=200)
def test_packs_that_carry_compute_every_node_once(windows: list[list[int]], budget: int, share: bool) -> None:
    tree = build_tree(_arrays(windows), END, share=share)
    spelled = _prefix_of_nodes(tree, windows)
    edges: Counter[int] = Counter()
    computed = 0
    left: list[tuple[int, ...]] = []
    for pack in cut_packs(tree, budget, carry=True):
        # Each node as the prefix that it stands for: carried ones by what the pack before has left.
        prefixes = left[: pack.carried]
        for chain in pack.chains:
            assert chain.start == len(prefixes)
            before = prefixes[chain.stem[-1]] if len(chain.stem) else ()
            assert [prefixes[node] for node in chain.stem] == [before[: size + 1] for size in range(len(before))]
            for node in range(chain.start, chain.stop):
                assert pack.positions[node - pack.carried] == len(before)
                before = (*before, int(pack.token_ids[node - pack.carried]))
                prefixes.append(before)
        assert 0 < len(pack.token_ids) == len(prefixes) - pack.carried
        assert len(pack.token_ids) <= max(budget, *map(len, windows))
        for source, target, edge, weight in zip(
            pack.edge_source, pack.edge_target, pack.edges, pack.edge_weights, strict=True
        ):
            assert (*prefixes[source], target) == spelled[int(edge)]
            assert weight == tree.weights[edge]
        edges.update(pack.edges.tolist())
        computed += len(pack.token_ids)
        left = [prefixes[node] for node in pack.last_path]
    assert computed == tree.distinct_tokens
    assert edges == Counter({node: 1 for node in range(len(tree.tokens)) if tree.depths[node] > 0})


@given(WINDOWS)
def test_without_sharing_every_window_is_computed_by_itself(windows: list[list[int]]) -> None:
    tree = build_tree(_arrays(windows), END, share=False)
    assert tree.distinct_tokens == sum(map(len, windows))
    assert set(tree.weights.tolist()) == {1}


def test_multiplicities_count_as_repeated_windows() -> None:
    once = build_tree(_arrays([[1, 2], [1, 3]]), END, multiplicities=[3, 1])
    repeated = build_tree(_arrays([[1, 2], [1, 3], [1, 2], [1, 2]]), END)
    assert sorted(once.weights.tolist()) == sorted(repeated.weights.tolist())


def test_a_large_budget_repeats_nothing() -> None:
    windows = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6]]
    (pack,) = cut_packs(build_tree(_arrays(windows), END), 100)
    assert len(pack.token_ids) == 6


def test_a_cut_is_taken_where_little_is_repeated() -> None:
    windows = [[1] * 10 + [2], [1] * 10 + [3], [2] * 10 + [2], [2] * 10 + [3]]
    packs = list(cut_packs(build_tree(_arrays(windows), END), 14))
    assert [len(pack.token_ids) for pack in packs] == [12, 12]


def test_a_window_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        build_tree([np.array([], np.int64)], END)
