"""DPP selection against determinants computed directly."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mim_plugins.apps.photos import PHOTOS, photo_crops
from mim_plugins.masking import DPPMasking, RandomMasking, _numba, dpp, greedy_map, sample_kdpp
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


@pytest.mark.parametrize(
    ("num", "k", "dim"), [(5, 2, 2), (6, 3, 3), (8, 4, 8), (7, 1, 2), (6, 5, 4)]
)
def test_exact_sampler_follows_the_determinants(num: int, k: int, dim: int) -> None:
    L = kernels(1, num, dim, seed=num)
    draws = 40_000
    chosen = sample_kdpp(L.expand(draws, -1, -1), k, generator=torch.Generator().manual_seed(0))
    subsets = list(combinations(range(num), k))
    exact = L[0].double().numpy()
    weights = np.array([np.linalg.det(exact[np.ix_(s, s)]) for s in subsets])
    expected = draws * weights / weights.sum()
    index = {s: i for i, s in enumerate(subsets)}
    counts = np.zeros(comb(num, k))
    for ids in chosen.sort(dim=1).values.tolist():
        counts[index[tuple(ids)]] += 1
    common = expected >= 5  # the chi-square approximation needs a few expected counts
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum())
    if predicted[-1] < 5:
        observed = np.append(observed[:-2], observed[-2:].sum())
        predicted = np.append(predicted[:-2], predicted[-2:].sum())
    assert len(predicted) > 2
    assert chisquare(observed, predicted).pvalue > 1e-3


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
