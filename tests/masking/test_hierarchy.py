"""Located latents against brute force: separation in the graph, and linear-Gaussian models."""

import copy
import itertools
import pickle
import sys
from collections.abc import Hashable, Iterator

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_plugins.analysis import LatentHierarchy, shared_latents
from mim_plugins.masking import RandomMasking

EDGES = [("a", "b"), ("a", 0), ("b", 1), ("b", 2)]


@st.composite
def hierarchies(draw: st.DrawFn, max_latents: int = 5, max_observables: int = 5) -> LatentHierarchy:
    """Any small graph: with latents that show in no observable, with free observables."""
    num_latents = draw(st.integers(1, max_latents))
    num_observables = draw(st.integers(2, max_observables))
    latents = [f"z{i}" for i in range(num_latents)]
    nodes = [*latents, *range(num_observables)]
    graph = nx.DiGraph()
    graph.add_nodes_from(draw(st.permutations(nodes)))
    for i, parent in enumerate(latents):
        for child in nodes[i + 1 :]:
            if draw(st.booleans()):
                graph.add_edge(parent, child)
    noise = {node: draw(st.integers(1, 2)) for node in nodes}
    hierarchy = LatentHierarchy(graph, range(num_observables))
    hierarchy.dimensions = dimensions_from(graph, noise)
    return hierarchy


def dimensions_from(graph: nx.DiGraph, noise: dict) -> dict:
    dimensions: dict = {}
    for node in nx.topological_sort(graph):
        dimensions[node] = noise[node] + sum(dimensions[p] for p in graph.predecessors(node))
    return dimensions


def all_masks(number: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([False, True], repeat=number)))


def subsets(items: tuple) -> Iterator[frozenset]:
    for size in range(len(items) + 1):
        yield from map(frozenset, itertools.combinations(items, size))


def sides(hierarchy: LatentHierarchy, mask: torch.Tensor) -> tuple[set, set]:
    masked = set(hierarchy.select(torch.cat([mask.new_zeros(len(hierarchy.latents)), mask])))
    return masked, set(hierarchy.observables) - masked


def valid_sets(hierarchy: LatentHierarchy, masked: set, visible: set) -> list[frozenset]:
    """By definition: functions of either side that separate the two (conditions 1 and 2).

    A variable determines its ancestors, so a set is known from a side if all of it lies
    above that side, and to condition on a set is to condition on all above it too.
    """
    graph = hierarchy.graph
    above = {
        side: set().union(*(nx.ancestors(graph, node) for node in nodes))
        for side, nodes in (("masked", masked), ("visible", visible))
    }
    valid = []
    for chosen in subsets(hierarchy.latents):
        if not (chosen <= above["masked"] and chosen <= above["visible"]):
            continue
        known = set(chosen).union(*(nx.ancestors(graph, node) for node in chosen))
        if nx.is_d_separator(graph, masked, visible, known):
            valid.append(chosen)
    return valid


@settings(max_examples=60, deadline=None)
@given(hierarchies())
def test_c_is_the_least_of_all_valid_sets(hierarchy: LatentHierarchy) -> None:
    masks = all_masks(len(hierarchy.observables))[1:-1]
    found = shared_latents(hierarchy, masks)
    for mask, row in zip(masks, found.c, strict=True):
        c = frozenset(hierarchy.select(row))
        valid = valid_sets(hierarchy, *sides(hierarchy, mask))
        assert c in valid
        assert all(c <= other for other in valid)  # more than minimal: least
        size = {s: sum(hierarchy.dimensions[node] for node in s) for s in valid}
        assert [s for s in valid if size[s] <= size[c]] == [c]


class LinearModel:
    """``v = W_v (Pa(v), ε_v)`` with W_v random and invertible, ε standard normal.

    ``maps[v]`` are the coefficients of v on the noises of all nodes.
    """

    def __init__(self, hierarchy: LatentHierarchy, seed: int) -> None:
        rng = np.random.default_rng(seed)
        graph = hierarchy.graph
        parents = {node: list(graph.predecessors(node)) for node in graph}
        noise = {
            node: hierarchy.dimensions[node] - sum(hierarchy.dimensions[p] for p in parents[node])
            for node in hierarchy.nodes
        }
        starts = np.cumsum([0, *noise.values()])
        eye = np.eye(starts[-1])
        self.noise = {
            node: eye[start : start + noise[node]]
            for node, start in zip(noise, starts, strict=False)
        }
        self.maps: dict[Hashable, np.ndarray] = {}
        for node in nx.topological_sort(graph):
            inputs = np.concatenate([*(self.maps[p] for p in parents[node]), self.noise[node]])
            left, _ = np.linalg.qr(rng.normal(size=(len(inputs), len(inputs))))
            right, _ = np.linalg.qr(rng.normal(size=(len(inputs), len(inputs))))
            scales = rng.uniform(0.5, 2.0, size=len(inputs))
            self.maps[node] = left * scales @ right @ inputs

    def of(self, nodes: set | frozenset | tuple) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.width)), *(self.maps[n] for n in nodes)])

    def noise_of(self, nodes: tuple) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.width)), *(self.noise[n] for n in nodes)])

    @property
    def width(self) -> int:
        return sum(len(rows) for rows in self.noise.values())


def rank(rows: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(rows, tol=1e-8)) if len(rows) else 0


def determines(known: np.ndarray, wanted: np.ndarray) -> bool:
    return rank(np.concatenate([known, wanted])) == rank(known)


def independent_given(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> bool:
    """Partial covariance zero; for Gaussian variables the same as independence."""
    keep = np.eye(a.shape[1]) - np.linalg.pinv(given, rcond=1e-10) @ given
    return bool(np.abs(a @ keep @ b.T).max(initial=0.0) < 1e-8)


@settings(max_examples=40, deadline=None)
@given(hierarchies(max_latents=4, max_observables=4), st.integers(0, 2**31))
def test_theorem_1_holds_in_linear_gaussian_models(hierarchy: LatentHierarchy, seed: int) -> None:
    model = LinearModel(hierarchy, seed)
    none = model.of(())
    masks = all_masks(len(hierarchy.observables))
    found = shared_latents(hierarchy, masks)
    for number, mask in enumerate(masks):
        masked, visible = sides(hierarchy, mask)
        x_m, x_mc = model.of(masked), model.of(visible)
        c = frozenset(hierarchy.select(found.c[number]))
        s_m = model.noise_of(hierarchy.select(found.s_m[number]))
        s_mc = model.noise_of(hierarchy.select(found.s_mc[number]))

        # Condition 1: invertible both ways, on both sides.
        for x, s in ((x_m, s_m), (x_mc, s_mc)):
            both = np.concatenate([model.of(c), s])
            assert determines(x, both)
            assert determines(both, x)
        # Condition 2.
        assert independent_given(s_m, np.concatenate([model.of(c), s_mc]), none)
        # Condition 3, over all sets: what passes contains c.
        passing = [
            chosen
            for chosen in subsets(hierarchy.latents)
            if determines(x_m, model.of(chosen))
            and determines(x_mc, model.of(chosen))
            and independent_given(x_m, x_mc, model.of(chosen))
        ]
        assert c in passing
        assert all(c <= chosen for chosen in passing)
        # The shared ancestors are what c knows.
        shared = hierarchy.select(found.shared[number])
        assert determines(model.of(c), model.of(shared))
        # Without one element the two sides are no longer independent.
        for node in c:
            assert not independent_given(x_m, x_mc, model.of(c - {node}))


@settings(max_examples=60, deadline=None)
@given(hierarchies(max_latents=8, max_observables=8), st.data())
def test_symmetric_in_the_two_sides(hierarchy: LatentHierarchy, data: st.DataObject) -> None:
    num = len(hierarchy.observables)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=num, max_size=num)))
    one, other = shared_latents(hierarchy, mask), shared_latents(hierarchy, ~mask)
    assert torch.equal(one.c, other.c)
    assert torch.equal(one.shared, other.shared)
    assert torch.equal(one.s_m, other.s_mc)
    assert torch.equal(one.s_mc, other.s_m)


def figure_4() -> LatentHierarchy:
    edges: list[tuple[str, object]] = [("z1", "z2"), ("z1", "z3")]
    for half, pairs in (("z2", ("z4", "z5")), ("z3", ("z6", "z7"))):
        edges += [(half, pair) for pair in pairs]
    for number, pair in enumerate(("z4", "z5", "z6", "z7")):
        edges += [(pair, 2 * number), (pair, 2 * number + 1)]
    return LatentHierarchy(edges, range(8))


@pytest.mark.parametrize(
    ("masked", "located"),
    [
        ({4}, {"z6"}),  # (a) too small to cover all that z6 shows: a low latent
        ({0, 1, 2, 3, 4, 5, 6}, {"z7"}),  # (b) too little left visible: a low latent again
        ({0, 1, 2, 3}, {"z1"}),  # (c) in between, and along the structure: the top
        ({0, 1, 4, 5}, {"z2", "z3"}),
        ({0, 2, 4, 6}, {"z4", "z5", "z6", "z7"}),  # in between, across the structure: the bottom
        ({0, 1, 2, 3, 4}, {"z6"}),
    ],
)
def test_the_situations_of_figure_4(masked: set[int], located: set[str]) -> None:
    hierarchy = figure_4()
    mask = torch.tensor([number in masked for number in range(8)])
    assert set(hierarchy.select(shared_latents(hierarchy, mask).c)) == located


def test_own_information_of_both_sides() -> None:
    hierarchy = LatentHierarchy(EDGES, [0, 1, 2])
    found = shared_latents(hierarchy, torch.tensor([False, True, True]))
    assert hierarchy.select(found.c) == ("a",)
    assert hierarchy.select(found.s_m) == ("b", 1, 2)
    assert hierarchy.select(found.s_mc) == (0,)
    assert hierarchy.select(found.shared) == ("a",)


@pytest.mark.parametrize("masked", [True, False])
def test_all_or_nothing_masked_shares_nothing(masked: bool) -> None:
    hierarchy = LatentHierarchy.quadtree((4, 4))
    found = shared_latents(hierarchy, torch.full((16,), masked))
    assert not found.c.any()
    assert not found.shared.any()
    full, empty = (found.s_m, found.s_mc) if masked else (found.s_mc, found.s_m)
    assert full.all()
    assert not empty.any()


def test_many_masks_at_once_and_any_dtype() -> None:
    hierarchy = LatentHierarchy.random(20, 30, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(3, 7, 30, generator=torch.Generator().manual_seed(1)) < 0.4
    found = shared_latents(hierarchy, masks)
    assert found.c.shape == (3, 7, 20)
    assert found.s_m.shape == (3, 7, 50)
    for i, j in itertools.product(range(3), range(7)):
        one = shared_latents(hierarchy, masks[i, j])
        assert all(torch.equal(a, b[i, j]) for a, b in zip(one, found, strict=True))
    for dtype in (torch.float16, torch.float32, torch.uint8, torch.long):
        assert torch.equal(shared_latents(hierarchy, masks.to(dtype)).c, found.c)
    assert shared_latents(hierarchy, masks[:0]).c.shape == (0, 7, 20)


class CountingMode(torch.utils._python_dispatch.TorchDispatchMode):
    """Sums the elements that all tensor operations write."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.elements += result.numel()
        return result


@pytest.mark.parametrize("shape", ["chain", "tree", "layers"])
def test_linear_in_edges_and_masks(shape: str) -> None:
    def work(size: int, masks: int) -> tuple[int, int]:
        if shape == "chain":
            edges = [*((i, i + 1) for i in range(size)), *((i, ("x", i)) for i in range(size))]
            hierarchy = LatentHierarchy([*edges, (size, ("x", size))], [("x", 0), ("x", size)])
        elif shape == "tree":
            hierarchy = LatentHierarchy.quadtree((size, 8))
        else:
            layers = [(("z", i), ("x", j)) for i in range(8) for j in range(size)]
            hierarchy = LatentHierarchy(layers, [("x", j) for j in range(size)])
        mask = torch.zeros(masks, len(hierarchy.observables), dtype=torch.bool)
        with CountingMode() as counting:
            shared_latents(hierarchy, mask)
        return counting.elements, hierarchy.graph.number_of_edges()

    small, few = work(64, 16)
    large, many = work(512, 16)
    assert large / small == pytest.approx(many / few, rel=0.1)
    assert work(64, 128)[0] / small == pytest.approx(8, rel=0.1)


def test_quadtree() -> None:
    hierarchy = LatentHierarchy.quadtree((14, 14))
    assert hierarchy.heights.bincount().tolist() == [0, 49, 16, 4, 1]
    assert hierarchy.observables[15] == (0, 1, 1)  # row-major
    assert hierarchy.latents[0] == (4, 0, 0)
    assert nx.is_arborescence(hierarchy.graph)
    children = set(hierarchy.graph[1, 6, 6])
    assert children == {(0, i, j) for i in (12, 13) for j in (12, 13)}
    assert set(hierarchy.graph[2, 3, 3]) == {(1, 6, 6)}  # cut at the border


@pytest.mark.parametrize(
    ("grid", "branching", "depth", "counts"),
    [
        ((9, 9), 3, None, [0, 9, 1]),
        ((8, 8), 2, 2, [0, 16, 1]),
        ((8, 8), 2, 1, [0, 1]),
        ((2, 8), (1, 2), None, [0, 8, 4, 2, 1]),
        ((4, 8), (4, 2), None, [0, 4, 2, 1]),
        ((5, 1), 1, None, [0, 1]),
        ((3, 5), 7, None, [0, 1]),
    ],
)
def test_quadtree_of_any_branching_and_depth(
    grid: tuple[int, int], branching: int, depth: int | None, counts: list[int]
) -> None:
    hierarchy = LatentHierarchy.quadtree(grid, branching, depth)
    assert hierarchy.heights.bincount().tolist() == counts
    assert hierarchy.grid == grid
    assert len(hierarchy.observables) == grid[0] * grid[1]
    assert nx.is_arborescence(hierarchy.graph)


def test_quadtree_with_shifted_blocks() -> None:
    hierarchy = LatentHierarchy.quadtree((4, 4), offset=(1, 0))
    assert set(hierarchy.graph[1, 0, 0]) == {(0, 0, 0), (0, 0, 1)}  # cut
    assert set(hierarchy.graph[1, 1, 0]) == {(0, i, j) for i in (1, 2) for j in (0, 1)}
    assert hierarchy.heights.bincount().tolist() == [0, 6, 2, 1]
    assert nx.is_arborescence(hierarchy.graph)
    with pytest.raises(ValueError, match="offset must be at least 0, got -1"):
        LatentHierarchy.quadtree((4, 4), offset=-1)


def test_random_graphs() -> None:
    seeded = [
        LatentHierarchy.random(6, 5, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert nx.utils.graphs_equal(seeded[0].graph, seeded[1].graph)
    assert not nx.utils.graphs_equal(seeded[0].graph, seeded[2].graph)
    for probability in (0.0, 0.5, 1.0):
        hierarchy = LatentHierarchy.random(6, 5, probability)
        assert set(hierarchy.latents) == {f"z{i}" for i in range(6)}
        assert hierarchy.observables == (0, 1, 2, 3, 4)
        assert all(hierarchy.graph.in_degree(node) for node in range(5))
        assert bool((hierarchy.heights > 0).all())
    assert hierarchy.graph.number_of_edges() == 15 + 30


def test_heights() -> None:
    edges = [("top", "mid"), ("mid", 0), ("top", 1), ("top", "barren"), ("barren", "end")]
    hierarchy = LatentHierarchy(edges, [0, 1])
    assert dict(zip(hierarchy.latents, hierarchy.heights.tolist(), strict=True)) == {
        "top": 2, "mid": 1, "barren": 0, "end": 0,
    }  # fmt: skip
    assert hierarchy.height == 2
    order = [hierarchy.nodes.index(node) for node in ("top", "mid", 0)]
    assert order == sorted(order)


@settings(max_examples=40, deadline=None)
@given(hierarchies(max_latents=6, max_observables=6))
def test_ancestors(hierarchy: LatentHierarchy) -> None:
    num = len(hierarchy.observables)
    above = hierarchy.ancestors(torch.eye(num, dtype=torch.bool))
    expected = [nx.ancestors(hierarchy.graph, node) for node in hierarchy.observables]
    assert [set(hierarchy.select(row)) for row in above] == expected
    for height in range(1, hierarchy.height + 1):
        same = [n for n, h in zip(hierarchy.latents, hierarchy.heights, strict=True) if h == height]
        table = hierarchy.ancestors_at(height)
        for row, all_above in zip(table.tolist(), expected, strict=True):
            real = [same[i] for i in row if i < len(same)]
            assert len(real) == len(set(real))
            assert set(real) == all_above & set(same)


def test_copies() -> None:
    hierarchy = LatentHierarchy.quadtree((4, 4))
    mask = torch.arange(16) < 5
    for twin in (copy.deepcopy(hierarchy), pickle.loads(pickle.dumps(hierarchy))):
        assert twin.latents == hierarchy.latents
        assert torch.equal(shared_latents(twin, mask).c, shared_latents(hierarchy, mask).c)
    graph = nx.DiGraph(EDGES)
    kept = LatentHierarchy(graph, [0, 1, 2])
    graph.add_edge(0, "a")
    assert kept.graph.number_of_edges() == 4
    with pytest.raises(nx.NetworkXError, match="[Ff]rozen"):
        kept.graph.add_edge(0, "a")
    assert "2 latents of height up to 2, 3 observables, 4 edges" in repr(kept)


def test_rejects_graphs() -> None:
    with pytest.raises(ValueError, match=r"graph must be acyclic, got the cycle 'a' -> 'b' -> 'a'"):
        LatentHierarchy([*EDGES, ("b", "a")], [0, 1, 2])
    with pytest.raises(ValueError, match="no children .Assumption 1.*0 to the observable 1"):
        LatentHierarchy([*EDGES, (0, 1)], [0, 1, 2])
    with pytest.raises(ValueError, match="no children .Assumption 1.*0 to the latent 'b'"):
        LatentHierarchy([*EDGES, (0, "b")], [0, 1, 2])
    with pytest.raises(ValueError, match=r"observables must be nodes of the graph, unknown: \[7\]"):
        LatentHierarchy(EDGES, [0, 1, 2, 7])
    with pytest.raises(ValueError, match=r"named once, got more than once: \[1\]"):
        LatentHierarchy(EDGES, [0, 1, 1])
    with pytest.raises(ValueError, match="observables must name at least one node"):
        LatentHierarchy(EDGES, [])
    with pytest.raises(TypeError, match="graph must be directed"):
        LatentHierarchy(nx.Graph(EDGES), [0, 1, 2])
    for graph in (5, [("a", "b", "c", "d")], ["a"]):
        with pytest.raises(TypeError, match=r"graph must be a networkx\.DiGraph or edges"):
            LatentHierarchy(graph, [0])
    with pytest.raises(ValueError, match="grid must have as many .*, 3, got 2 x 2"):
        LatentHierarchy(EDGES, [0, 1, 2], grid=(2, 2))


def test_rejects_masks() -> None:
    hierarchy = LatentHierarchy(EDGES, [0, 1, 2])
    with pytest.raises(ValueError, match=r"mask must have shape \(\.\.\., 3\).*got \(2, 4\)"):
        shared_latents(hierarchy, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"got \(\)"):
        shared_latents(hierarchy, torch.tensor(True))
    with pytest.raises(ValueError, match="mask must contain only 0 .*got 0.5"):
        shared_latents(hierarchy, torch.tensor([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="mask must contain only 0 .*got nan"):
        shared_latents(hierarchy, torch.tensor([0.0, torch.nan, 1.0]))
    with pytest.raises(TypeError, match=r"of a PatchMask its \.mask\), got PatchMask"):
        shared_latents(
            hierarchy, RandomMasking(mask_ratio=0.5, patch_size=1)(torch.zeros(1, 3, 1, 3))
        )
    with pytest.raises(TypeError, match="hierarchy must be a LatentHierarchy"):
        shared_latents(nx.DiGraph(EDGES), torch.zeros(3))
    with pytest.raises(ValueError, match=r"marked must have shape \(2,\) or \(5,\), got \(4,\)"):
        hierarchy.select(torch.zeros(4, dtype=torch.bool))


def test_rejects_constructor_arguments() -> None:
    with pytest.raises(ValueError, match=r"depth must be in 1\.\.3 for grid=8 x 8 .*, got 4"):
        LatentHierarchy.quadtree((8, 8), depth=4)
    with pytest.raises(TypeError, match=r"depth must be an int, got 2\.0"):
        LatentHierarchy.quadtree((8, 8), depth=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"branching must be at least 1, got 0"):
        LatentHierarchy.quadtree((8, 8), branching=0)
    with pytest.raises(TypeError, match="branching must be one or two ints"):
        LatentHierarchy.quadtree((8, 8), branching=(2, 2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grid must have at least two patches"):
        LatentHierarchy.quadtree((1, 1))
    with pytest.raises(ValueError, match="num_latents must be at least 1, got 0"):
        LatentHierarchy.random(0, 3)
    with pytest.raises(ValueError, match=r"edge_probability must be in \[0, 1\], got 1\.5"):
        LatentHierarchy.random(2, 3, 1.5)


def test_names_the_extra_without_networkx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match=r"pip install 'mim_plugins\[analysis\]'"):
        LatentHierarchy(EDGES, [0, 1, 2])
