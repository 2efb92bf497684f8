"""Mask graphs against enumeration in exact fractions, and the paper's inequalities."""

import itertools
import math
from collections import defaultdict
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim_plugins.analysis import MaskGraph, mask_graph


def image_set(seed: int, num: int = 6, patches: int = 4, symbols: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(symbols, (num, patches), generator=generator)
    return images, torch.arange(num) % 2


SETS = [image_set(seed) for seed in range(4)] + [image_set(9, num=8, patches=5, symbols=2)]
CASES = [
    (images, labels, masked / images.shape[1], positions)
    for images, labels in SETS
    for masked in range(1, images.shape[1])
    for positions in (True, False)
]


class Enumeration:
    """The same quantities from definitions, view by view, in fractions."""

    def __init__(
        self, images: Tensor, labels: Tensor, masked: int, positions: bool, weights: list[int]
    ) -> None:
        n = images.shape[1]
        kept_sets = list(itertools.combinations(range(n), n - masked))
        total = sum(weights) * len(kept_sets)
        self.joint: dict = defaultdict(Fraction)  # x1, x2, image
        for number, row in enumerate(images.tolist()):
            for kept in kept_sets:
                rest = tuple(i for i in range(n) if i not in kept)
                x1, x2 = tuple(row[i] for i in kept), tuple(row[i] for i in rest)
                if positions:
                    x1, x2 = (x1, kept), (x2, rest)
                self.joint[x1, x2, number] += Fraction(weights[number], total)
        self.labels = labels.tolist()
        self.inputs = sorted({x1 for x1, _, _ in self.joint})
        self.targets = sorted({x2 for _, x2, _ in self.joint})

    def edge(self, x1: tuple, x2: tuple) -> Fraction:
        return sum((p for (a, b, _), p in self.joint.items() if (a, b) == (x1, x2)), Fraction(0))

    def label_of(self, side: int) -> dict:
        by_class: dict = defaultdict(lambda: defaultdict(Fraction))
        for key, p in self.joint.items():
            by_class[key[side]][self.labels[key[2]]] += p
        return {x: max(sorted(c), key=lambda y, c=c: c[y]) for x, c in by_class.items()}

    def label_error(self, side: int) -> Fraction:
        label = self.label_of(side)
        return sum(p for k, p in self.joint.items() if label[k[side]] != self.labels[k[2]])

    def mixing(self) -> Fraction:
        """Two hops, x1 to x2 to x1'."""
        label = self.label_of(0)
        total = Fraction(0)
        for x2 in self.targets:
            column = {x1: self.edge(x1, x2) for x1 in self.inputs}
            degree = sum(column.values())
            for a, b in itertools.product(column, column):
                if label[a] != label[b]:
                    total += column[a] * column[b] / degree
        return total

    def links(self, side: int) -> tuple[Fraction, Fraction]:
        intra = inter = Fraction(0)
        owners: dict = defaultdict(lambda: defaultdict(Fraction))
        for key, p in self.joint.items():
            owners[key[side]][key[2]] += p
        for owner in owners.values():
            degree = sum(owner.values())
            for a, b in itertools.permutations(owner, 2):
                if self.labels[a] == self.labels[b]:
                    intra += owner[a] * owner[b] / degree
                else:
                    inter += owner[a] * owner[b] / degree
        return intra, inter


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("masked", [1, 2, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_enumeration(positions: bool, masked: int, weighted: bool) -> None:
    images, labels = image_set(0)
    weights = [1, 2, 3, 1, 5, 2] if weighted else [1] * 6
    exact = Enumeration(images, labels, masked, positions, weights)
    graph = mask_graph(
        images, labels, masked / 4, positions, torch.tensor(weights) if weighted else None
    )
    assert graph.adjacency.shape == (len(exact.targets), len(exact.inputs))
    # Views are numbered differently: edges, sorted by weight and by degrees, must agree.
    edges = sorted(
        (round(float(exact.edge(x1, x2)), 12))
        for x1 in exact.inputs
        for x2 in exact.targets
        if exact.edge(x1, x2)
    )
    found = graph.adjacency[graph.adjacency > 0]
    assert sorted(found.tolist()) == pytest.approx(edges, abs=1e-12)
    degrees = [float(sum(exact.edge(x1, x2) for x2 in exact.targets)) for x1 in exact.inputs]
    assert sorted(graph.input_degrees.tolist()) == pytest.approx(sorted(degrees))
    assert graph.label_error == pytest.approx(float(exact.label_error(0)), abs=1e-12)
    assert graph.target_label_error == pytest.approx(float(exact.label_error(1)), abs=1e-12)
    assert graph.class_mixing == pytest.approx(float(exact.mixing()), abs=1e-12)
    assert graph.links("input") == pytest.approx([float(x) for x in exact.links(0)], abs=1e-12)
    assert graph.links("target") == pytest.approx([float(x) for x in exact.links(1)], abs=1e-12)


@pytest.mark.parametrize("positions", [True, False])
def test_view_numbers_name_the_views(positions: bool) -> None:
    images, labels = image_set(1)
    graph = mask_graph(images, labels, 0.5, positions)
    removed = list(itertools.combinations(range(4), 2))
    seen: dict = {}
    for i, c in itertools.product(range(6), range(6)):
        rest = tuple(images[i, list(removed[c])].tolist())
        view = (rest, removed[c]) if positions else rest
        assert seen.setdefault(view, graph.target_ids[i, c].item()) == graph.target_ids[i, c]
    assert len(set(seen.values())) == len(seen) == len(graph.target_degrees)


@pytest.mark.parametrize(("images", "labels", "ratio", "positions"), CASES)
def test_augmentation_graph_and_eigenvalues(
    images: Tensor, labels: Tensor, ratio: float, positions: bool
) -> None:
    graph = mask_graph(images, labels, ratio, positions)
    w, d2 = graph.adjacency.numpy(), graph.target_degrees.numpy()
    two_hops = np.einsum("ti,tj,t->ij", w, w, 1 / d2)  # sum over x2 of p(x2) p(x1|x2) p(x1'|x2)
    np.testing.assert_allclose(graph.augmentation.numpy(), two_hops, atol=1e-15)
    d1 = graph.input_degrees.numpy()
    np.testing.assert_allclose(two_hops.sum(axis=1), d1, atol=1e-15)  # the same degrees
    expected = np.linalg.eigvalsh(two_hops / np.sqrt(np.outer(d1, d1)))[::-1]
    np.testing.assert_allclose(graph.eigenvalues.numpy(), expected, atol=1e-12)
    assert graph.residual(2) == pytest.approx((expected[2:] ** 2).sum(), abs=1e-10)
    components = nx.number_connected_components(nx.from_numpy_array(two_hops > 0))
    assert graph.num_components == components
    if positions:  # a mask's views meet no other mask's
        assert components >= math.comb(images.shape[1], round(images.shape[1] * ratio))


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(("images", "labels"), SETS)
def test_ratios_that_sum_to_one_have_the_same_eigenvalues(
    images: Tensor, labels: Tensor, positions: bool
) -> None:
    """So residual eigenvalues alone explain no mask ratio above 1/2."""
    n = images.shape[1]
    for masked in range(1, n):
        graph = mask_graph(images, labels, masked / n, positions)
        mirror = mask_graph(images, labels, 1 - masked / n, positions)
        for dim in (1, 2, 4):
            assert graph.residual(dim) == pytest.approx(mirror.residual(dim), abs=1e-9)
            assert graph.umae_lower_bound(dim) == pytest.approx(mirror.umae_lower_bound(dim))
        assert graph.label_error == pytest.approx(mirror.target_label_error, abs=1e-12)
        assert graph.links("input") == pytest.approx(mirror.links("target"), abs=1e-12)


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(("images", "labels"), SETS)
def test_label_error_grows_with_the_mask_ratio(
    images: Tensor, labels: Tensor, positions: bool
) -> None:
    n = images.shape[1]
    errors = [mask_graph(images, labels, i / n, positions).label_error for i in range(1, n)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(errors))
    assert errors[-1] > errors[0]


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(("images", "labels"), SETS)
def test_larger_ratios_share_more_inputs_and_fewer_targets(
    images: Tensor, labels: Tensor, positions: bool
) -> None:
    """Section 3.2 expects shared targets to be more likely under larger ratios."""
    n = images.shape[1]
    graphs = [mask_graph(images, labels, i / n, positions) for i in range(1, n)]
    for small, large in itertools.pairwise(graphs):
        assert sum(large.links("target")) <= sum(small.links("target")) + 1e-12
        assert large.links("target")[1] <= small.links("target")[1] + 1e-12
        assert sum(large.links("input")) >= sum(small.links("input")) - 1e-12
        assert large.links("input")[1] >= small.links("input")[1] - 1e-12
        if positions:  # chance that two neighbours of the augmentation graph differ
            assert large.augmentation.trace() >= small.augmentation.trace() - 1e-12
    assert sum(graphs[-1].links("target")) < sum(graphs[0].links("target"))


@pytest.mark.parametrize(("images", "labels", "ratio", "positions"), CASES)
def test_equation_30_holds_with_both_views(
    images: Tensor, labels: Tensor, ratio: float, positions: bool
) -> None:
    graph = mask_graph(images, labels, ratio, positions)
    both = graph.label_error + graph.target_label_error
    assert graph.class_mixing <= 2 * both + 1e-12
    # What it is for, the step after Eq. 30: ||D^1/2 Y - A_normalised C||^2 <= 2 mixing.
    root = graph.input_degrees.sqrt()
    y = root[:, None] * F.one_hot(graph.input_labels, 2).double()
    normalized = graph.augmentation / (root[:, None] * root)
    difference = (y - normalized @ y).square().sum().item()
    assert difference <= 2 * graph.class_mixing + 1e-12
    assert difference <= 4 * both + 1e-12


def test_equation_30_fails_with_the_input_view_alone() -> None:
    """Two images with one patch in common: inputs tell the class, a target need not."""
    graph = mask_graph(torch.tensor([[0, 0, 2], [1, 1, 2]]), torch.tensor([0, 1]), 1 / 3)
    assert graph.label_error == 0
    # Of three masks one has the target 2, shared by both images: half of its mass crosses.
    assert graph.class_mixing == pytest.approx(1 / 6)
    assert graph.target_label_error == pytest.approx(1 / 6)


# Theorems 3.3 and 4.2 ---------------------------------------------------------------


def unit_rows(num: int, dim: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(num, dim, generator=generator, dtype=torch.float64), dim=1)


def random_graph(seed: int) -> tuple[MaskGraph, torch.Generator]:
    images, labels, ratio, positions = CASES[seed % len(CASES)]
    return mask_graph(images, labels, ratio, positions), torch.Generator().manual_seed(seed)


def mean_over_edges(graph: MaskGraph, value: Tensor) -> float:
    """Expectation of ``value`` ``(N2, N1)`` over the draws of image and mask, one by one."""
    total = 0.0
    for image, p in enumerate(graph.probabilities.tolist()):
        for x1, x2 in zip(graph.input_ids[image], graph.target_ids[image], strict=True):
            total += p / graph.input_ids.shape[1] * value[x2, x1].item()
    return total


@pytest.mark.parametrize("seed", range(12))
def test_population_losses_are_expectations(seed: int) -> None:
    graph, generator = random_graph(seed * 3)
    h = unit_rows(len(graph.input_degrees), 3, generator)
    h_g = unit_rows(len(graph.target_degrees), 3, generator)
    assert graph.asymmetric_loss(h, h_g) == pytest.approx(-mean_over_edges(graph, h_g @ h.T))
    products = h @ h.T
    a, d = graph.augmentation, graph.input_degrees
    assert graph.alignment_loss(h) == pytest.approx(-(a * products).sum().item())
    pairs = torch.outer(d, d)
    assert graph.uniformity_loss(h) == pytest.approx((pairs * products**2).sum().item())
    # Eq. 12 is a matrix factorisation: ||A - U U^T||^2 - ||A||^2, A normalised.
    u = d.sqrt()[:, None] * h
    normalized = a * torch.outer(d, d).rsqrt()
    residue = (normalized - u @ u.T).square().sum() - normalized.square().sum()
    assert graph.spectral_contrastive_loss(h) == pytest.approx(residue.item())


@pytest.mark.parametrize("seed", range(40))
def test_theorem_3_3_with_the_constant_one_half(seed: int) -> None:
    graph, generator = random_graph(seed)
    h = unit_rows(len(graph.input_degrees), 3, generator)
    # Random targets, and those that make the left side as small as it can be.
    best = F.normalize(graph.adjacency @ h, dim=1)
    for h_g in (unit_rows(len(graph.target_degrees), 3, generator), best):
        bound = graph.alignment_loss(h) / 2 - 1 / 2
        assert graph.asymmetric_loss(h, h_g) >= bound - 1e-12


def test_the_constant_of_theorem_3_3_cannot_be_larger() -> None:
    """Features that collapse to one point attain the bound."""
    graph, _ = random_graph(5)
    point = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    h = point.expand(len(graph.input_degrees), -1)
    h_g = point.expand(len(graph.target_degrees), -1)
    assert graph.asymmetric_loss(h, h_g) == pytest.approx(-1)
    assert graph.alignment_loss(h) / 2 - 1 / 2 == pytest.approx(-1)


def lipschitz_of(f: Tensor, h: Tensor) -> float:
    """Smallest L of Corollary 3.5 for features f and outputs h = g(f) on all pairs."""
    before, after = torch.cdist(f, f).square(), torch.cdist(h, h).square()
    pairs = torch.ones_like(before).triu(1).bool()
    ratio = after[pairs] / before[pairs]
    return max(ratio.max().item(), (1 / ratio).max().item(), 1.0)


def umae_loss(graph: MaskGraph, f: Tensor, h: Tensor, x2: Tensor, weight: float) -> float:
    """Eq. 10 from its definition, draw by draw and pair by pair."""
    errors = (h[None] - x2[:, None]).square().sum(dim=2)
    reconstruction = mean_over_edges(graph, errors)
    p = graph.input_degrees
    uniform = sum(
        (p[i] * p[j] * (f[i] @ f[j]) ** 2).item()
        for i, j in itertools.product(range(len(p)), repeat=2)
    )
    return reconstruction + weight * uniform


@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_theorem_4_2_corrected(seed: int, dim: int) -> None:
    """Encoders of every quality, decoders g that bend features, pseudo-encoders that miss."""
    graph, generator = random_graph(seed)
    num1, num2 = len(graph.input_degrees), len(graph.target_degrees)
    vectors = torch.linalg.svd(graph.normalized_adjacency)[2][:dim].T
    spectral = F.normalize(vectors / graph.input_degrees.sqrt()[:, None], dim=1)
    for noise in (1.0, 0.1):
        f = F.normalize(spectral + noise * unit_rows(num1, dim, generator), dim=1)
        bend = torch.randn(dim, 6, generator=generator, dtype=torch.float64)
        straight = torch.linalg.qr(bend.T)[0].T  # an isometry, L = 1
        for decoder in (straight, straight + 0.2 * bend):
            h = F.normalize(f @ decoder, dim=1)
            bound_l = lipschitz_of(f, h)
            # Targets: what the decoder can do best, made hard by noise; h_g misses them by ε.
            x2 = F.normalize(graph.adjacency @ h, dim=1) + noise * unit_rows(num2, 6, generator)
            x2 = F.normalize(x2, dim=1)
            h_g = F.normalize(x2 + 0.05 * unit_rows(num2, 6, generator), dim=1)
            epsilon = (graph.target_degrees * (x2 - h_g).square().sum(dim=1)).sum().item()
            loss = umae_loss(graph, f, h, x2, 1 / (4 * bound_l))
            # Theorem 3.7 with its constant, then the common bound.
            contrastive = graph.spectral_contrastive_loss(f) / (4 * bound_l)
            middle = contrastive + 1 / (2 * bound_l) - epsilon
            assert loss >= middle - 1e-9
            assert middle >= graph.umae_lower_bound(dim, bound_l, epsilon) - 1e-9
            # Corollary 3.5's step before the Lipschitz bound.
            mae = mean_over_edges(graph, (h[None] - x2[:, None]).square().sum(dim=2))
            assert mae >= 1 / 2 + graph.alignment_loss(h) / 2 - epsilon - 1e-9


def test_the_corrected_bound_is_attained() -> None:
    """One constant image: perfect reconstruction, one feature; the loss is 1/(4L) U = 1/4."""
    graph = mask_graph(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1), 0.5, positions=False)
    f = h = x2 = torch.ones(1, 1, dtype=torch.float64)
    assert umae_loss(graph, f, h, x2, 1 / 4) == pytest.approx(1 / 4)
    assert graph.umae_lower_bound(1) == pytest.approx(1 / 4)


def test_no_constant_of_equation_15_serves_all_graphs() -> None:
    """As printed, 1/(4L) sum_{i>k} λ_i^2 + const: the constant must depend on the graph."""
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for num in (1, 4, 40):  # images that share no view: eigenvalue 1, num times
        images = torch.arange(num)[:, None].expand(-1, 2)
        graph = mask_graph(images, torch.arange(num), 0.5, positions=False)
        f = h = x2 = unit_rows(num, 3, generator)  # perfect reconstruction, isometric decoder
        loss = umae_loss(graph, f, h, x2, 1 / 4)
        assert loss >= graph.umae_lower_bound(3) - 1e-12
        gaps.append(loss - graph.residual(3) / 4)  # the constant is at most this
    assert gaps[0] == pytest.approx(1 / 4)
    assert gaps[1] < gaps[0]
    assert gaps[2] < -9
    # It also changes with the mask ratio of one image set.
    images, labels = SETS[0]
    totals = [mask_graph(images, labels, r).eigenvalues.square().sum() for r in (0.25, 0.5)]
    assert abs(totals[0] - totals[1]) > 1


# Arguments --------------------------------------------------------------------------


def test_patches_of_values_are_symbols_when_equal() -> None:
    images, labels = image_set(2)
    values = torch.tensor([[0.5, 1.0], [0.5, 2.0], [3.0, 1.0]])
    of_values = mask_graph(values[images], labels, 0.5)
    of_symbols = mask_graph(images, labels, 0.5)
    assert torch.equal(of_values.adjacency, of_symbols.adjacency)


def test_labels_may_be_any_integers() -> None:
    images, labels = image_set(3)
    graph = mask_graph(images, labels, 0.75)
    assert mask_graph(images, 100 - 50 * labels, 0.75).label_error == graph.label_error


def test_bad_arguments() -> None:
    images, labels = image_set(0)
    with pytest.raises(ValueError, match="must have shapes.*got .6, 4. and .5,."):
        mask_graph(images, labels[:5], 0.5)
    with pytest.raises(ValueError, match="at least 2 patches"):
        mask_graph(images[:, :1], labels, 0.5)
    with pytest.raises(TypeError, match="integer symbols, got torch.float32"):
        mask_graph(images.float(), labels, 0.5)
    for ratio in (0.0, 1.0, 0.6, -0.25):
        with pytest.raises(ValueError, match=rf"mask_ratio must be i / 4 .*got {ratio}"):
            mask_graph(images, labels, ratio)
    for weights in (torch.ones(5), torch.tensor([1.0, 1, 1, 1, 1, 0])):
        with pytest.raises(ValueError, match="probabilities must be 6 positive numbers"):
            mask_graph(images, labels, 0.5, probabilities=weights)
    with pytest.raises(ValueError, match="different input views are more than max_views=10"):
        mask_graph(images, labels, 0.5, max_views=10)
    with pytest.raises(ValueError, match="2 images with 155117520 masks each are more than"):
        mask_graph(torch.zeros(2, 30, dtype=torch.long), labels[:2], 0.5)
    graph = mask_graph(images, labels, 0.5)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        graph.residual(0)
    with pytest.raises(ValueError, match="lipschitz must be at least 1"):
        graph.umae_lower_bound(2, lipschitz=0.5)
    with pytest.raises(ValueError, match="epsilon must be finite and at least 0"):
        graph.umae_lower_bound(2, epsilon=-1)
    with pytest.raises(ValueError, match=r"through must be one of .*, got 'both'"):
        graph.links("both")
