"""DPP selection against determinants computed directly."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.metrics.pairwise import cosine_similarity

from mim_plugins.apps.photos import PHOTOS, photo_crops
from mim_plugins.masking import (
    DPPMasking,
    RandomMasking,
    _numba,
    dpp,
    greedy_map,
    sample_kdpp,
    sample_kdpp_dual,
)
from mim_plugins.masking.dpp import SMALLEST_GAIN, _greedy_map_torch

BACKENDS = [_greedy_map_torch]
if _numba.INSTALLED:
    BACKENDS.append(_numba.greedy_map)

every_backend = pytest.mark.parametrize(
    "backend", BACKENDS, ids=["torch", "numba"][: len(BACKENDS)]
)


def kernels(batch: int, num: int, dim: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Unit-diagonal RBF kernels of random points; nearly singular for few dims."""
    x = torch.randn(batch, num, dim, generator=torch.Generator().manual_seed(seed)) * scale
    return torch.exp(-0.5 * torch.cdist(x.double(), x.double()) ** 2).float()


def reference_greedy(L: np.ndarray, k: int, first: int) -> tuple[list[int], float]:
    """Greedy MAP with every gain a ratio of determinants, float64, no recursion."""
    chosen = [first]
    while len(chosen) < k:
        best, best_value = -1, -np.inf
        for j in set(range(len(L))) - set(chosen):
            value = np.linalg.slogdet(L[np.ix_([*chosen, j], [*chosen, j])])[1]
            if value > best_value:
                best, best_value = j, value
        chosen.append(best)
    return chosen, np.linalg.slogdet(L[np.ix_(chosen, chosen)])[1]


@every_backend
def test_greedy_picks_the_largest_determinant_at_every_step(backend: object) -> None:
    L = kernels(20, 12, 3)
    noise = torch.rand(20, 12, generator=torch.Generator().manual_seed(1))
    chosen = backend(L, 6, SMALLEST_GAIN, True, noise)
    for b in range(20):
        expected, _ = reference_greedy(L[b].double().numpy(), 6, int(noise[b].argmin()))
        assert chosen[b].tolist() == expected


@every_backend
def test_log_determinant_on_a_thousand_kernels(backend: object) -> None:
    """Within 1e-4 relative of a float64 Cholesky greedy, nearly singular kernels included."""
    worst = 0.0
    for part, (dim, scale) in enumerate([(2, 0.3), (3, 1.0), (8, 1.0), (32, 0.5)]):
        L = kernels(250, 24, dim, seed=part, scale=scale)
        noise = torch.rand(250, 24, generator=torch.Generator().manual_seed(part))
        chosen = backend(L, 8, SMALLEST_GAIN, True, noise)
        for b in range(250):
            exact = L[b].double().numpy()
            ids = [int(noise[b].argmin())]
            for _ in range(7):  # gains as Schur complements, solved afresh each time
                inside = exact[np.ix_(ids, ids)]
                across = exact[ids]
                gains = exact.diagonal() - (across * np.linalg.solve(inside, across)).sum(axis=0)
                gains[ids] = -np.inf
                ids.append(int(gains.argmax()))
            expected = np.linalg.slogdet(exact[np.ix_(ids, ids)])[1]
            actual = np.linalg.slogdet(exact[np.ix_(chosen[b], chosen[b])])[1]
            worst = max(worst, abs(actual - expected) / abs(expected))
    assert worst < 1e-4


@every_backend
@pytest.mark.parametrize("tau", [0.05, 0.2, 0.5, 0.9])
def test_tau_stops_the_greedy_choice(backend: object, tau: float) -> None:
    L = kernels(30, 40, 3)
    noise = torch.rand(30, 40, generator=torch.Generator().manual_seed(2))
    greedy = backend(L, 20, SMALLEST_GAIN, True, noise)
    chosen = backend(L, 20, tau, True, noise)
    for b in range(30):
        exact = L[b].double().numpy()
        log_dets = [
            np.linalg.slogdet(exact[np.ix_(ids, ids)])[1]
            for ids in (greedy[b, : t + 1].tolist() for t in range(20))
        ]
        gains = np.exp(np.diff(log_dets, prepend=0.0))
        stop = next((t for t in range(1, 20) if gains[t] <= tau), 20)
        assert chosen[b, :stop].tolist() == greedy[b, :stop].tolist()
        rest = [i for i in noise[b].argsort().tolist() if i not in chosen[b, :stop]]
        assert chosen[b, stop:].tolist() == rest[: 20 - stop]


def test_usual_greedy_start_is_the_largest_diagonal() -> None:
    L = kernels(5, 10, 3)
    scale = torch.rand(5, 10, generator=torch.Generator().manual_seed(0)) + 0.5
    L = L * scale[:, :, None] * scale[:, None, :]
    chosen = greedy_map(L, 4, random_start=False)
    for b in range(5):
        first = int(scale[b].argmax())
        assert chosen[b].tolist() == reference_greedy(L[b].double().numpy(), 4, first)[0]


@pytest.mark.skipif(not _numba.INSTALLED, reason="numba is not installed")
def test_backends_agree() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        L = kernels(16, 64, 6).to(dtype)
        noise = torch.rand(16, 64, generator=torch.Generator().manual_seed(5))
        for threshold in (SMALLEST_GAIN, 0.1, 1.0):
            for start in (True, False):
                arguments = (L, 32, threshold, start, noise)
                assert torch.equal(_numba.greedy_map(*arguments), _greedy_map_torch(*arguments))


@every_backend
def test_duplicates_are_chosen_last(backend: object) -> None:
    """Of 4 distinct patches, each repeated 5 times, one of each comes before any repetition."""
    L = torch.eye(4).repeat_interleave(5, 0).repeat_interleave(5, 1)[None].expand(8, -1, -1)
    noise = torch.rand(8, 20, generator=torch.Generator().manual_seed(0))
    chosen = backend(L.contiguous(), 10, SMALLEST_GAIN, True, noise)
    for ids in chosen.tolist():
        assert sorted(i // 5 for i in ids[:4]) == [0, 1, 2, 3]
        assert len(set(ids)) == 10


def test_tau_one_is_random_masking_bit_for_bit() -> None:
    x = torch.rand(6, 3, 32, 32)
    masks = []
    for masking in (RandomMasking(patch_size=4), DPPMasking(patch_size=4, tau=1.0)):
        torch.manual_seed(0)
        masks.append(masking(x).ids_shuffle)
    assert torch.equal(*masks)
    noise = torch.rand(6, 64)
    chosen = greedy_map(kernels(6, 64, 5), 16, tau=1.0, noise=noise)
    assert torch.equal(chosen, noise.argsort(dim=1)[:, :16])


def test_tau_one_and_constant_images_include_every_patch_equally_often() -> None:
    for tau, x in ((1.0, torch.rand(1, 3, 16, 16)), (0.0, torch.full((1, 3, 16, 16), 0.5))):
        mask = DPPMasking(patch_size=4, tau=tau)(
            x.expand(8000, -1, -1, -1), generator=torch.Generator().manual_seed(0)
        ).mask
        # Inclusions within an image are negatively correlated: the test is conservative.
        assert chisquare((~mask).sum(dim=0).numpy()).pvalue > 1e-3


def test_dpp_masks_are_more_diverse_than_random_ones() -> None:
    rng = np.random.default_rng(0)
    crops = [np.asarray(photo_crops(name, 1, 224, True, rng)[0]) for name in PHOTOS]
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
    generator = torch.Generator().manual_seed(0)
    L = dpp.patch_kernel(dpp.unit_features(x, (14, 14))).double()

    def log_det(masking: DPPMasking | RandomMasking) -> torch.Tensor:
        ids = masking(x, generator=generator).ids_keep
        rows = torch.arange(len(x))[:, None, None]
        return torch.linalg.slogdet(L[rows, ids[:, :, None], ids[:, None, :]]).logabsdet

    random = log_det(RandomMasking())
    half = log_det(DPPMasking(tau=0.5))
    greedy = log_det(DPPMasking(tau=0.0))
    exact = log_det(DPPMasking(method="exact"))
    assert (greedy > random).all()
    assert (greedy > exact).all()
    assert random.mean() < half.mean() < greedy.mean()
    assert exact.mean() > random.mean()


def pvalue(chosen: torch.Tensor, exact: np.ndarray, rank: int | None = None) -> float:
    """Chi-square test of samples ``(draws, k)`` against the determinants of all subsets.

    With a rank below k, det(L_Y + eps I) for small eps: eps^(k - rank) times the sum of the
    determinants of ``rank`` items out of Y.
    """
    draws, k = chosen.shape
    subsets = list(combinations(range(len(exact)), k))
    weights = np.array(
        [
            sum(np.linalg.det(exact[np.ix_(y, y)]) for y in combinations(s, rank or k))
            for s in subsets
        ]
    )
    expected = draws * weights / weights.sum()
    index = {s: i for i, s in enumerate(subsets)}
    counts = np.zeros(len(subsets))
    for ids in chosen.sort(dim=1).values.tolist():
        counts[index[tuple(ids)]] += 1
    common = expected >= 5  # the chi-square approximation needs a few expected counts
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum())
    if predicted[-1] < 5:
        observed = np.append(observed[:-2], observed[-2:].sum())
        predicted = np.append(predicted[:-2], predicted[-2:].sum())
    assert len(predicted) > 2
    return chisquare(observed, predicted).pvalue


@pytest.mark.parametrize(
    ("num", "k", "dim"), [(5, 2, 2), (6, 3, 3), (8, 4, 8), (7, 1, 2), (6, 5, 4)]
)
def test_exact_sampler_follows_the_determinants(num: int, k: int, dim: int) -> None:
    L = kernels(1, num, dim, seed=num)
    chosen = sample_kdpp(L.expand(40_000, -1, -1), k, generator=torch.Generator().manual_seed(0))
    assert pvalue(chosen, L[0].double().numpy()) > 1e-3


def cosines(x: torch.Tensor) -> np.ndarray:
    """Cosine similarity of rows ``(N, D)`` in float64; rows of zeros are equal to each other."""
    black = ~x.any(dim=1).numpy()
    return cosine_similarity(x.double().numpy()) + np.outer(black, black)


@pytest.mark.parametrize(
    ("num", "k", "dim", "black"),
    [(7, 2, 3, 0), (6, 3, 4, 0), (6, 3, 3, 0), (7, 1, 2, 0), (8, 5, 6, 0), (7, 3, 4, 3)],
)
def test_dual_sampler_follows_the_determinants(num: int, k: int, dim: int, black: int) -> None:
    """From features, of length 1 and of others, with k = D and zeros, in batches of two images."""
    x = torch.randn(2, num, dim, generator=torch.Generator().manual_seed(num))
    x[:, :black] = 0
    draws = torch.arange(40_000) % 2
    generator = torch.Generator().manual_seed(0)
    for one in range(2):
        chosen = sample_kdpp_dual(dpp.unit_vectors(x)[draws], k, generator)[one::2]
        assert chosen.shape == (20_000, k)
        assert pvalue(chosen, cosines(x[one])) > 1e-3
        assert pvalue(chosen, cosines(x[1 - one])) < 1e-6 or k == 1  # all the same then
        lengths = sample_kdpp_dual(x[draws], k, generator)[one::2]
        assert pvalue(lengths, (x[one] @ x[one].T).double().numpy()) > 1e-3
        if not black:
            primal = sample_kdpp(dpp.patch_kernel(x, "cosine")[draws], k, generator)[one::2]
            assert pvalue(primal, cosines(x[one])) > 1e-3


@pytest.mark.parametrize(("k", "rank"), [(3, 2), (4, 2), (2, 1)])
def test_a_rank_below_k_is_the_limit_of_full_rank(k: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(1, 6, rank, generator=generator).double()
    x = x @ torch.randn(rank, 5, generator=generator).double()
    x[:, 5] = -x[:, 4]
    L = x @ x.mT
    for chosen in (
        sample_kdpp_dual(x.expand(40_000, -1, -1), k, generator),
        sample_kdpp(L.expand(40_000, -1, -1), k, generator),
    ):
        assert pvalue(chosen, L[0].numpy(), rank) > 1e-3
        assert pvalue(chosen, np.eye(6)) < 1e-6


def test_dual_has_the_eigenpairs_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpp, "_sample", lambda *arguments: arguments)
    x = dpp.unit_vectors(torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0)))
    values, vectors, *_ = sample_kdpp_dual(x, 4)
    for b in range(3):
        L = cosines(x[b])
        expected = np.append(np.linalg.eigvalsh(L)[-6:][::-1], 1e-10)  # the 7th: x has a spare axis
        np.testing.assert_allclose(values[b].numpy()[::-1], expected, rtol=1e-9)
        V = vectors[b, :, 1:].numpy()
        np.testing.assert_allclose(V.T @ V, np.eye(6), atol=1e-12)
        np.testing.assert_allclose(V * values[b, 1:].numpy() @ V.T, L, atol=1e-12)
        assert not vectors[b, :, 0].any()


def test_dual_of_equal_patches() -> None:
    """One of each kind comes before any repetition, repetitions are by chance."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2000, 4, 16, generator=generator)
    kinds[:, 3] = 0
    kind = torch.stack([torch.randperm(24, generator=generator) % 4 for _ in range(2000)])
    x = kinds.gather(1, kind[:, :, None].expand(-1, -1, 16))
    for k in (6, 16):
        chosen = sample_kdpp_dual(dpp.unit_vectors(x), k, generator)
        assert (chosen.sort(dim=1).values.diff(dim=1) > 0).all()
        assert chosen.min() >= 0
        assert chosen.max() < 24
        firsts = kind.gather(1, chosen[:, :4]).sort(dim=1).values
        assert torch.equal(firsts, torch.arange(4).expand(2000, -1))
        fifth = kind.gather(1, chosen[:, 4:5]).flatten()
        assert chisquare(fifth.bincount(minlength=4).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_dual_of_constant_images_is_random(value: float) -> None:
    masking = DPPMasking(method="exact", kernel="cosine", patch_size=4)
    images = torch.full((4000, 1, 20, 20), value)  # N = 25 of D = 16
    mask = masking(images, mask_ratio=0.5, generator=torch.Generator().manual_seed(0)).mask
    assert ((~mask).sum(dim=1) == 12).all()
    assert chisquare((~mask).sum(dim=0).numpy()).pvalue > 1e-3
    again = masking(images, mask_ratio=0.5, generator=torch.Generator().manual_seed(0)).mask
    assert torch.equal(mask, again)


@pytest.mark.parametrize(
    ("dim", "kernel", "dual"),
    [
        (8, "cosine", True),
        (4, "cosine", True),  # k = D
        (3, "cosine", False),
        (15, "cosine", True),
        (16, "cosine", False),  # D = N
        (8, "rbf", False),
    ],
)
def test_which_form_is_taken(
    dim: int, kernel: str, dual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(2, 16, dim, generator=torch.Generator().manual_seed(0))
    taken = []
    for name in ("sample_kdpp", "sample_kdpp_dual"):
        stock = getattr(dpp, name)
        monkeypatch.setattr(dpp, name, lambda *a, f=stock, n=name: taken.append(n) or f(*a))
    masking = DPPMasking(method="exact", kernel=kernel, features=lambda _: tokens, patch_size=8)
    images = torch.rand(2, 3, 32, 32)
    expected = masking(images, generator=torch.Generator().manual_seed(0))
    assert taken == ["sample_kdpp_dual" if dual else "sample_kdpp"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = masking(images, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inside.mask, expected.mask)


def test_a_subclass_keeps_its_own_kernel() -> None:
    class First(DPPMasking):
        def similarity(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
            return torch.diag((torch.arange(16) < 4).float()).expand(len(images), -1, -1)

    masking = First(method="exact", kernel="cosine", features=lambda _: torch.rand(2, 16, 8))
    mask = masking(torch.rand(2, 3, 32, 32), mask_ratio=0.75, patch_size=8).mask
    assert torch.equal(mask, (torch.arange(16) >= 4).expand(2, -1))


@pytest.mark.parametrize("compiled", [False, True])
def test_black_patches_are_equal_patches(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the cosine kernel too: a black margin is no set of patches unlike each other."""
    if not compiled:
        monkeypatch.setattr(_numba, "INSTALLED", False)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[:, :, :16] = 0
    kept = DPPMasking(tau=0.0, kernel="cosine", patch_size=4)(images, mask_ratio=0.75).ids_keep
    assert ((kept < 32).sum(dim=1) == 1).all()


def test_exact_sampler_inclusion_of_many_items() -> None:
    """Inclusion frequencies against the marginals from leave-one-out polynomials."""
    L = kernels(1, 20, 2, seed=3)
    draws, k = 20_000, 8
    chosen = sample_kdpp(L.expand(draws, -1, -1), k, torch.Generator().manual_seed(0))
    frequency = torch.zeros(20, dtype=torch.double).index_add_(
        0, chosen.flatten(), torch.ones(draws * k, dtype=torch.double)
    )
    # sum over |Y| = k of det(L_Y) is a coefficient of det(I + xL); that without item i excludes it.
    exact = L[0].double().numpy()

    def total(matrix: np.ndarray) -> float:
        return abs(np.poly(np.linalg.eigvalsh(matrix))[k])

    without = np.array([total(np.delete(np.delete(exact, i, 0), i, 1)) for i in range(20)])
    inclusion = 1 - without / total(exact)
    spread = np.sqrt(inclusion * (1 - inclusion) / draws)
    assert np.abs(frequency.numpy() / draws - inclusion).max() < 5 * spread.max()


def test_exact_sampler_is_deterministic_and_total() -> None:
    L = kernels(3, 30, 2, scale=0.1)  # numerically of low rank
    ones = torch.ones(2, 30, 30)  # rank one
    for kernel in (L, ones):
        first = sample_kdpp(kernel, 20, torch.Generator().manual_seed(0))
        again = sample_kdpp(kernel, 20, torch.Generator().manual_seed(0))
        assert torch.equal(first, again)
        assert all(len(set(ids)) == 20 for ids in first.tolist())
    everything = sample_kdpp(L, 30)
    assert torch.equal(everything.sort(dim=1).values, torch.arange(30).expand(3, -1))


def test_bad_arguments() -> None:
    L = kernels(2, 6, 2)
    for function in (greedy_map, sample_kdpp):
        with pytest.raises(ValueError, match=r"k must be in 1..N=6, got 7"):
            function(L, 7)
        with pytest.raises(ValueError, match=r"L must have shape \(B, N, N\), got \(6, 6\)"):
            function(L[0], 2)
    for x, k in ((torch.rand(2, 6, 4), 5), (torch.rand(2, 4, 6), 5), (torch.rand(2, 4, 6), 0)):
        with pytest.raises(ValueError, match=rf"k must be in 1..min\(N, D\)=4, got {k}"):
            sample_kdpp_dual(x, k)
    with pytest.raises(ValueError, match=r"features must have shape \(B, N, D\), got \(6, 4\)"):
        sample_kdpp_dual(torch.rand(6, 4), 2)
    with pytest.raises(ValueError, match=r"tau must be in \[0, 1\], got 1.5"):
        greedy_map(L, 2, tau=1.5)
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 6\)"):
        greedy_map(L, 2, noise=torch.rand(2, 5))
    with pytest.raises(ValueError, match=r"tau must be in \[0, 1\], got -0.1"):
        DPPMasking(tau=-0.1)
    with pytest.raises(ValueError, match="method must be one of .*got 'mcmc'"):
        DPPMasking(method="mcmc")
    with pytest.raises(ValueError, match="tau applies to method='greedy' only, got tau=0.5"):
        DPPMasking(method="exact", tau=0.5)
    with pytest.raises(ValueError, match="kernel must be one of .*got 'laplace'"):
        DPPMasking(kernel="laplace")
    with pytest.raises(ValueError, match="features must be one of .*or a callable, got 'hog'"):
        DPPMasking(features="hog")
    with pytest.raises(TypeError, match="features must be one of .*or a callable, got 3"):
        DPPMasking(features=3)
