"""Hierarchies of latent variables above an image's patches.

Kong et al., "Understanding Masked Autoencoders via Hierarchical Latent Variable Models",
CVPR 2023, section 2.1.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor

from .._check import check_int, check_share
from .._versions import check_versions, importing


def _networkx() -> Any:
    with importing("latent hierarchies need networkx"):
        import networkx
    check_versions(networkx, extra="analysis")
    return networkx


class LatentHierarchy:
    """A directed acyclic graph of latent and observable variables (section 2.1).

    Every variable is an invertible function of its parents and of a noise of its own,
    ``v = g_v(Pa(v), ε_v)`` (Eq. 1); noises are independent and none is constant. Under
    Assumption 1 no edge joins two observables; here observables have no children at all.

    Args:
        graph: A ``networkx.DiGraph`` or an iterable of edges ``(parent, child)``.
        observables: The observable nodes, N in all; their order is that of a mask's
            columns. All other nodes are latent.
        grid: Rows and columns of patches, if the observables are an image's patches in
            row-major order.

    Attributes:
        graph: The graph, a frozen copy.
        latents: The L latent nodes, highest first, so that parents precede children.
        observables: The N observable nodes.
        nodes: Latents, then observables.
        heights: ``(L,)`` long on the CPU: edges on the longest path down to an observable.
            1 is directly above the observables; 0 marks a latent that no observable shows.
        height: The largest of them.
        grid: As given.

    Raises:
        ImportError: If networkx is not installed.
        TypeError: If ``graph`` is no directed graph.
        ValueError: If the graph has a cycle, an observable is unknown, named twice or has
            children, or ``grid`` has another number of patches.

    Example:
        >>> edges = [("object", "part"), ("part", 0), ("part", 1), ("object", 2)]
        >>> hierarchy = LatentHierarchy(edges, observables=[0, 1, 2])
        >>> hierarchy.latents, hierarchy.heights
        (('object', 'part'), tensor([2, 1]))
    """

    def __init__(
        self,
        graph: Any,
        observables: Sequence[Hashable],
        *,
        grid: tuple[int, int] | None = None,
    ) -> None:
        self.graph = _checked_graph(graph, observables)
        heights = _heights(self.graph, observables)
        observed = set(observables)
        latents = [node for node in self.graph if node not in observed]
        self.latents = tuple(sorted(latents, key=lambda node: -heights[node]))
        self.observables = tuple(observables)
        self.nodes = self.latents + self.observables
        self.heights = torch.tensor([heights[node] for node in self.latents], dtype=torch.long)
        self.height = max((heights[node] for node in latents), default=0)
        if grid is not None and grid[0] * grid[1] != len(self.observables):
            raise ValueError(
                f"grid must have as many patches as there are observables, "
                f"{len(self.observables)}, got {grid[0]} x {grid[1]}"
            )
        self.grid = grid

        row = {node: index for index, node in enumerate(self.nodes)}
        # Per height, upwards: the rows of its latents (they are contiguous) and their edges.
        self._levels: list[tuple[slice, Tensor]] = []
        shown = [node for node in self.latents if heights[node] > 0]
        for _, group in groupby(shown, heights.__getitem__):
            parents = list(group)
            rows = slice(row[parents[0]], row[parents[-1]] + 1)
            edges = [(i, row[c]) for i, node in enumerate(parents) for c in self.graph[node]]
            self._levels.insert(0, (rows, torch.tensor(edges).T))
        self._ancestors_at: dict[tuple[int, torch.device], Tensor] = {}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.latents)} latents of height up to {self.height}, "
            f"{len(self.observables)} observables, {self.graph.number_of_edges()} edges)"
        )

    @classmethod
    def quadtree(
        cls,
        grid: tuple[int, int] = (14, 14),
        branching: int | tuple[int, int] = 2,
        depth: int | None = None,
        offset: int | tuple[int, int] = 0,
    ) -> LatentHierarchy:
        """Blocks of patches within blocks of patches, up to one root for the whole image.

        The latent ``(h, i, j)`` of height h stands for the block in row i and column j of
        blocks of ``branching ** h`` patches; blocks at the border are cut. The observables
        are ``(0, row, column)``.

        Args:
            grid: Rows and columns of patches. Default: (14, 14).
            branching: Blocks that make one block of the next height, as the side of a
                square or as (rows, columns). Default: 2, a quadtree.
            depth: Number of latent heights; the highest is the root, whatever it covers.
                Default: until one block covers the grid.
            offset: Patches by which all blocks are shifted to the upper left, one number or
                (rows, columns). Default: 0; a masking unit is then a block if its side is
                a power of ``branching``.

        Raises:
            TypeError: If an argument is no int.
            ValueError: If an argument is out of range, or ``depth`` is larger than the
                number of heights until one block covers the grid.
        """
        rows, cols = _pair("grid", grid, 1)
        factors = _pair("branching", branching, 1)
        shift = _pair("offset", offset, 0)
        if rows * cols == 1:
            raise ValueError("grid must have at least two patches, got (1, 1)")
        sides = (rows + shift[0], cols + shift[1])
        full = 0  # heights until one block covers the grid
        while any(f > 1 and f**full < side for f, side in zip(factors, sides, strict=True)):
            full += 1
        full += any(f == 1 < side for f, side in zip(factors, sides, strict=True))
        if depth is None:
            depth = full
        if check_int("depth", depth) > full:
            raise ValueError(
                f"depth must be in 1..{full} for grid={rows} x {cols} and "
                f"branching={branching}, got {depth}"
            )
        observables = list(product((0,), range(rows), range(cols)))
        edges = []
        below = {patch: (patch[1] + shift[0], patch[2] + shift[1]) for patch in observables}
        for height in range(1, depth + 1):
            above = {}
            for node, place in below.items():
                block = place[0] // factors[0], place[1] // factors[1]
                parent = (height, 0, 0) if height == depth else (height, *block)
                edges.append((parent, node))
                above[parent] = block
            below = above
        return cls(edges, observables, grid=(rows, cols))

    @classmethod
    def random(
        cls,
        num_latents: int,
        num_observables: int,
        edge_probability: float = 0.3,
        generator: torch.Generator | None = None,
    ) -> LatentHierarchy:
        """A random graph: each possible edge occurs with the same probability.

        Latents are ``"z0", "z1", ...`` in topological order, observables ``0, 1, ...``. A
        latent without children gets a random one, an observable without parents as well.

        Args:
            num_latents, num_observables: At least 1 each.
            edge_probability: Of an edge from a latent to a later one or to an observable,
                in [0, 1]. Default: 0.3.
            generator: Source of randomness on the CPU. Default: torch's own.

        Raises:
            ValueError: If an argument is out of range.
        """
        check_int("num_latents", num_latents)
        check_int("num_observables", num_observables)
        check_share("edge_probability", edge_probability)

        def choose(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        num = num_latents + num_observables
        edge = torch.rand(num_latents, num, generator=generator) < edge_probability
        edge = edge.triu(1)
        for child in range(num_latents, num):
            if not edge[:, child].any():
                edge[choose(0, num_latents), child] = True
        for parent in range(num_latents):
            if not edge[parent].any():
                edge[parent, choose(parent + 1, num)] = True
        names: list[Hashable] = [*(f"z{i}" for i in range(num_latents)), *range(num_observables)]
        edges = [(names[parent], names[child]) for parent, child in edge.nonzero().tolist()]
        return cls(edges, names[num_latents:])

    def select(self, marked: Tensor) -> tuple[Hashable, ...]:
        """Names of the marked nodes: ``(L,)`` bool over latents or ``(L + N,)`` over nodes.

        Raises:
            ValueError: If ``marked`` has another shape.
        """
        lengths = (len(self.latents), len(self.nodes))
        if marked.ndim != 1 or len(marked) not in lengths:
            raise ValueError(
                f"marked must have shape ({lengths[0]},) or ({lengths[1]},), "
                f"got {tuple(marked.shape)}"
            )
        return tuple(self.nodes[index] for index in marked.nonzero().flatten().tolist())

    def ancestors(self, marked: Tensor) -> Tensor:
        """Latents above at least one marked observable.

        Args:
            marked: ``(..., N)`` bool.

        Returns:
            ``(..., L)`` bool, on the same device.
        """
        batch = marked.shape[:-1]
        columns = marked.reshape(batch.numel(), marked.shape[-1]).T
        found = columns.new_zeros(len(self.nodes), batch.numel())
        found[len(self.latents) :] = columns
        for rows, edges in self._levels:
            found[rows] = _has_marked_child(found, rows, edges)
        return found[: len(self.latents)].T.reshape(*batch, len(self.latents))

    def number_at(self, height: int) -> int:
        """Latents of one height, at least 1."""
        rows = self._levels[height - 1][0]
        return rows.stop - rows.start

    def ancestors_at(self, height: int, device: torch.device | str = "cpu") -> Tensor:
        """Which latents of one height lie above each observable, computed and moved once.

        Returns:
            ``(N, P)`` long on ``device``, by default the CPU: numbers among the latents of
            this height, in the order of ``latents``; rows are filled up to P, the largest
            number of ancestors (at least 1), with the number of these latents.
        """
        key = height, torch.device(device)
        if key not in self._ancestors_at:
            if key[1].type == "cpu":
                every = torch.eye(len(self.observables), dtype=torch.bool)
                above = self.ancestors(every)[:, self.heights == height]
                number = above.sum(dim=1)
                columns = torch.arange(max(1, int(number.max())))
                table = torch.full((len(above), len(columns)), above.shape[1])
                table[columns < number[:, None]] = above.nonzero()[:, 1]
            else:
                table = self.ancestors_at(height).to(device)
            if torch.compiler.is_compiling():  # the memory may be a CUDA graph's
                return table
            self._ancestors_at[key] = table
        return self._ancestors_at[key]

    def lowest(self, marked: Tensor) -> Tensor:
        """Of the marked latents ``(..., L)`` those that have no marked child, same shape."""
        batch = marked.shape[:-1]
        columns = marked.reshape(batch.numel(), marked.shape[-1]).T
        nodes = torch.cat([columns, columns.new_zeros(len(self.observables), batch.numel())])
        lowest = columns.clone()
        for rows, edges in self._levels:
            lowest[rows] &= ~_has_marked_child(nodes, rows, edges)
        return lowest.T.reshape(marked.shape)


def _has_marked_child(marked: Tensor, rows: slice, edges: Tensor) -> Tensor:
    """For the nodes ``rows`` of ``marked (V, M)``: ``(rows, M)`` bool, any child marked?

    ``edges (2, E)`` are all edges from these nodes: number within ``rows``, row of child.
    """
    parents, children = edges.to(marked.device)
    counts = torch.zeros_like(marked[rows], dtype=torch.int32)
    return counts.index_add_(0, parents, marked[children].int()) > 0


def _pair(name: str, value: int | tuple[int, int], smallest: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise TypeError(f"{name} must be one or two ints, got {value}")
    if min(pair) < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")
    return pair


def _checked_graph(graph: Any, observables: Iterable[Hashable]) -> Any:
    nx = _networkx()
    if isinstance(graph, nx.Graph):
        if not graph.is_directed():
            raise TypeError(f"graph must be directed, from cause to effect, got {graph}")
        checked = nx.DiGraph(graph)
    else:
        checked = nx.DiGraph()
        try:
            checked.add_edges_from(graph)
        except (nx.NetworkXError, TypeError, ValueError) as error:
            raise TypeError(
                f"graph must be a networkx.DiGraph or edges (parent, child), got {graph!r}"
            ) from error
    observables = list(observables)
    if not observables:
        raise ValueError("observables must name at least one node")
    unknown = [node for node in observables if node not in checked]
    if unknown:
        raise ValueError(f"observables must be nodes of the graph, unknown: {unknown}")
    if len(set(observables)) < len(observables):
        twice = [node for node in dict.fromkeys(observables) if observables.count(node) > 1]
        raise ValueError(f"observables must be named once, got more than once: {twice}")
    observed = set(observables)
    for node in observables:
        for child in checked[node]:
            other = "the observable" if child in observed else "the latent"
            raise ValueError(
                f"an observable must have no children (Assumption 1), got an edge from "
                f"{node!r} to {other} {child!r}"
            )
    if not nx.is_directed_acyclic_graph(checked):
        cycle = [parent for parent, _ in nx.find_cycle(checked)]
        raise ValueError(
            "graph must be acyclic, got the cycle "
            + " -> ".join(repr(node) for node in [*cycle, cycle[0]])
        )
    return nx.freeze(checked)


def _heights(graph: Any, observables: Iterable[Hashable]) -> dict[Hashable, int]:
    """Longest path down to an observable; 0 for observables and for what shows in none."""
    heights: dict[Hashable, int] = {}
    observed = set(observables)
    for node in reversed(list(_networkx().topological_sort(graph))):
        below = [heights[c] for c in graph[node] if c in observed or heights[c] > 0]
        heights[node] = 1 + max(below) if below else 0
    return heights
