from itertools import combinations

import numpy as np
import pytest
import torch

from mim_plugins.analysis import cooccurrence, mask_alignment_diversity
from mim_plugins.masking import DPPMasking, GridMasking, PatchMask, RandomMasking


def mean_colour(images: torch.Tensor, mask: PatchMask | None) -> torch.Tensor:
    """A stand-in encoder whose distances can be computed by hand: mean visible pixel."""
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5)).flatten(2)  # (B, C, N)
    if mask is None:
        return patches.mean(dim=2)
    return patches.gather(2, mask.ids_keep[:, None].expand(-1, 3, -1)).mean(dim=2)


def test_alignment_and_diversity_by_hand() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    masking = RandomMasking(patch_size=4)
    result = mask_alignment_diversity(
        mean_colour, images, masking, draws=3, generator=torch.Generator().manual_seed(1)
    )
    generator = torch.Generator().manual_seed(1)
    features = [mean_colour(images, masking(images, generator=generator)) for _ in range(3)]
    whole = images.mean(dim=(2, 3))
    for b in range(3):
        alignment = np.mean([np.linalg.norm(f[b] - whole[b]) for f in features])
        diversity = np.mean([np.linalg.norm(f[b] - g[b]) for f, g in combinations(features, 2)])
        assert result.alignment[b].item() == pytest.approx(alignment, rel=1e-5)
        assert result.diversity[b].item() == pytest.approx(diversity, rel=1e-5)


def test_equal_masks_have_no_diversity() -> None:
    images = torch.rand(2, 3, 16, 16)
    masking = GridMasking(patch_size=4, random_shift=False)
    assert mask_alignment_diversity(mean_colour, images, masking).diversity.max() == 0


def test_draws() -> None:
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        mask_alignment_diversity(mean_colour, torch.rand(1, 3, 16, 16), DPPMasking(), draws=1)


def brute_force(L: np.ndarray) -> np.ndarray:
    num = len(L)
    subsets = [s for k in range(num + 1) for s in combinations(range(num), k)]
    weights = np.array([np.linalg.det(L[np.ix_(s, s)]) if s else 1.0 for s in subsets])
    weights /= weights.sum()
    kept = np.array([[i in s for i in range(num)] for s in subsets], dtype=float)
    return np.einsum("s,si,sj->ij", weights, kept, kept)


def test_cooccurrence_against_enumeration() -> None:
    x = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2)
    for actual, kernel in zip(cooccurrence(L), L, strict=True):
        np.testing.assert_allclose(actual, brute_force(kernel.numpy()), atol=1e-10)


@pytest.mark.parametrize("size", [0.5, 2, 4.5])
def test_cooccurrence_of_expected_size(size: float) -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1)).double()
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2)
    together = cooccurrence(L, expected_size=size)
    assert together.diagonal(dim1=1, dim2=2).sum(dim=1).tolist() == pytest.approx([size] * 2)
    with pytest.raises(ValueError, match=r"expected_size must be in \(0, N=6\), got 6"):
        cooccurrence(L, expected_size=6)


def test_equal_patches_never_occur_together() -> None:
    L = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    together = cooccurrence(L)[0]
    assert together[0, 1].item() == pytest.approx(0, abs=1e-12)
    assert together[0, 2] > 0.1
