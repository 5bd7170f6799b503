"""Windows as a prefix tree: every distinct prefix token once, cut into packs that a device can take.

A causal model's state at a token depends only on the tokens before it, so windows with a common prefix share those
states. Sorted lexicographically, each window adds one unbroken run of new tokens (a chain) after what it shares with
the window before it; the chains in that order are the tree in depth-first order. What the model is asked for are the
tree's edges: the probability of a token given its prefix. An edge counts as often as windows pass through it.

Packed training by trees with equal gradients is described in arXiv 2511.00413.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Ints = np.ndarray
_CUT_SLACK = 0.25
"""Share of a pack's budget that may stay unused to cut where the repeated stem is shorter."""


@dataclass(frozen=True)
class Chain:
    """A run of new nodes [start, stop) of a pack, and the pack's nodes on the path before it, root first."""

    start: int
    stop: int
    stem: Ints


@dataclass(frozen=True)
class Pack:
    """A part of a tree that is computed in one forward pass.

    Its nodes are numbered [0, C + T): first the C `carried` ones, whose states the pack before has left, then the T
    computed ones. Node arrays have length T, edge arrays length E (predictions asked for). An edge leaves node
    `edge_source` and asks for token `edge_target`; `edges` are its global numbers in the tree, `edge_weights` the
    number of windows through it. `last_path` are the nodes of the last window, root first: the pack after carries the
    first of them on.
    """

    token_ids: Ints
    positions: Ints
    chains: tuple[Chain, ...]
    edge_source: Ints
    edge_target: Ints
    edge_weights: Ints
    edges: Ints
    last_path: Ints
    carried: int = 0


@dataclass(frozen=True)
class PrefixTree:
    """All distinct prefixes of a set of windows, each window closed by the end token.

    Nodes are numbered chain by chain. `paths[i]` holds the node numbers of window i (tokens, then end token), so the
    predictions of its tokens 1..n are the edges into `paths[i][1:]`: an edge has the number of the node it leads to.
    """

    tokens: Ints
    depths: Ints
    parents: Ints
    weights: Ints
    paths: tuple[Ints, ...]
    order: tuple[int, ...]
    shared: Ints
    """For each window in `order`: how many leading nodes it shares with the window before it."""
    is_inner: np.ndarray
    """Whether a node has a child, that is, whether its state is needed."""

    @property
    def distinct_tokens(self) -> int:
        """Tokens that are computed when nothing is repeated."""
        return int(self.is_inner.sum())


def build_tree(
    windows: Sequence[Ints], end_token_id: int, multiplicities: Sequence[int] | None = None, *, share: bool = True
) -> PrefixTree:
    """The prefix tree of `windows` (arrays of token ids, none empty), in time linear in their tokens but for the sort.

    `multiplicities` (default 1 each) says how many times a window counts. `share=False` gives every window its own
    path, which is the plain computation in the same form.
    """
    closed = [np.append(np.asarray(window, dtype=np.int64), end_token_id) for window in windows]
    if not closed or any(len(window) < 2 for window in closed):
        raise ValueError("A prefix tree needs at least one window, and none without tokens.")
    counts = np.ones(len(closed), np.int64) if multiplicities is None else np.asarray(multiplicities, np.int64)
    # Big-endian bytes compare as the numbers do, so bytes give the lexicographic order.
    order = sorted(range(len(closed)), key=lambda i: closed[i].astype(">u4").tobytes()) if share else range(len(closed))
    paths: list[Ints] = [np.empty(0, np.int64)] * len(closed)
    shared = np.zeros(len(closed), np.int64)
    parts: list[tuple[Ints, Ints, Ints]] = []
    size = 0
    previous = -1
    for rank, index in enumerate(order):
        window = closed[index]
        common = _common_prefix(closed[previous], window) if share and previous >= 0 else 0
        new = np.arange(size, size + len(window) - common)
        stem = paths[previous][:common] if common else new[:0]
        paths[index] = np.concatenate([stem, new])
        parents = paths[index][common - 1 : -1] if common else np.concatenate([[-1], new[:-1]])
        parts.append((window[common:], np.arange(common, len(window)), parents[: len(new)]))
        shared[rank] = common
        size += len(new)
        previous = index
    tokens, depths, parents = _concatenated(parts)
    weights = np.zeros(size, np.int64)
    for path, count in zip(paths, counts, strict=True):
        weights[path] += count
    is_inner = np.zeros(size, bool)
    is_inner[parents[parents >= 0]] = True
    return PrefixTree(tokens, depths, parents, weights, tuple(paths), tuple(order), shared, is_inner)


def _concatenated(parts: list[tuple[Ints, Ints, Ints]]) -> tuple[Ints, Ints, Ints]:
    """Tokens, depths and parents of all windows' new nodes, each as one array."""
    tokens, depths, parents = (np.concatenate([np.empty(0, np.int64), *column]) for column in zip(*parts, strict=True))
    return tokens, depths, parents


def _common_prefix(one: Ints, other: Ints) -> int:
    """How many leading tokens two windows share."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def cut_packs(tree: PrefixTree, token_budget: int, *, carry: bool = False) -> Iterator[Pack]:
    """Packs of at most `token_budget` tokens (more only for one window that is longer), each edge in exactly one.

    A pack's first window repeats the stem it shares with the window before; the cut is taken where that is shortest
    among the last places that keep the pack well filled. With `carry` nothing is repeated: the stem's states have to be
    those that the pack before computed, so packs must be taken in their order, and training, where gradients would
    have to go back through all packs, cannot use it.
    """
    place = np.full(len(tree.tokens), -1, np.int64)
    first = 0
    while first < len(tree.order):
        last = _filled(tree, first, token_budget) if carry else _cut(tree, first, token_budget)
        yield _make_pack(tree, first, last, place, carry=carry)
        first = last


def _filled(tree: PrefixTree, first: int, budget: int) -> int:
    """The rank of the first window that no longer fits a pack that begins with window `first` and repeats nothing."""
    size = 0
    for rank in range(first, len(tree.order)):
        added = int(tree.is_inner[tree.paths[tree.order[rank]][int(tree.shared[rank]) :]].sum())
        # What adds nothing to compute stays with the window before it: no pack is without tokens.
        if added and size and size + added > budget:
            return rank
        size += added
    return len(tree.order)


def _cut(tree: PrefixTree, first: int, budget: int) -> int:
    """The rank of the first window that no longer belongs to the pack that begins with window `first`."""
    sizes = [len(tree.paths[tree.order[first]]) - 1]
    while first + len(sizes) < len(tree.order):
        rank = first + len(sizes)
        grown = sizes[-1] + len(tree.paths[tree.order[rank]]) - int(tree.shared[rank])
        if grown > budget:
            break
        sizes.append(grown)
    end = first + len(sizes)
    if end == len(tree.order):
        return end
    filled = [rank for rank in range(first + 1, end + 1) if sizes[rank - first - 1] >= (1 - _CUT_SLACK) * sizes[-1]]
    return min(filled, key=lambda rank: (int(tree.shared[rank]), -rank))


def _make_pack(tree: PrefixTree, first: int, last: int, place: Ints, *, carry: bool) -> Pack:
    """The pack of the windows ranked [first, last): their nodes in depth-first order, stem of the first before them.

    `place` maps the tree's nodes to the pack's; it is scratch space as long as the tree, filled anew for each pack.
    """
    nodes: list[Ints] = []
    chains: list[Chain] = []
    edges: list[Ints] = []
    stem = tree.paths[tree.order[first]][: int(tree.shared[first]) if carry else 0]
    place[stem] = np.arange(len(stem))
    size = carried = len(stem)
    for rank in range(first, last):
        path = tree.paths[tree.order[rank]]
        common = carried if rank == first else int(tree.shared[rank])
        new = path[common:][tree.is_inner[path[common:]]]
        if len(new):
            chains.append(Chain(size, size + len(new), place[path[:common]]))
            place[new] = np.arange(size, size + len(new))
            nodes.append(new)
            size += len(new)
        # The stem's own edges belong to the pack that computed it first.
        edges.append(path[max(1, int(tree.shared[rank])) :])
    index = np.concatenate(nodes) if nodes else np.empty(0, np.int64)
    edge_ids = np.concatenate(edges)
    return Pack(
        token_ids=tree.tokens[index],
        positions=tree.depths[index],
        chains=tuple(chains),
        edge_source=place[tree.parents[edge_ids]],
        edge_target=tree.tokens[edge_ids],
        edge_weights=tree.weights[edge_ids],
        edges=edge_ids,
        last_path=place[path[tree.is_inner[path]]],
        carried=carried,
    )


def edge_slices(pack: Pack, rows: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """The pack's edges by the node they leave, `rows` nodes at a time.

    Gives those nodes, the places of their edges in the pack's edge arrays, and for each edge the row of its node.
    """
    order = np.argsort(pack.edge_source, kind="stable")
    sources, first = np.unique(pack.edge_source[order], return_index=True)
    bounds = np.append(first, len(order))
    for begin in range(0, len(sources), rows):
        end = min(begin + rows, len(sources))
        counts = np.diff(bounds[begin : end + 1])
        yield sources[begin:end], order[bounds[begin] : bounds[end]], np.repeat(np.arange(end - begin), counts)


def ancestor_mask(pack: Pack) -> np.ndarray:
    """A (T, T) boolean matrix: whether the row's token may attend to the column's, that is, to itself and its path.

    Of packs that carry nothing.
    """
    size = len(pack.token_ids)
    mask = np.zeros((size, size), bool)
    for chain in pack.chains:
        length = chain.stop - chain.start
        mask[chain.start : chain.stop, chain.stem] = True
        mask[chain.start : chain.stop, chain.start : chain.stop] = np.tri(length, dtype=bool)
    return mask
