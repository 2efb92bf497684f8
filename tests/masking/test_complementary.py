"""Disjoint visible sets, and what one mask of them is by itself."""

import copy
import pickle

import numpy as np
import pytest
import torch

from mim_plugins.apps.photos import PHOTOS, photo_crops
from mim_plugins.masking import (
    ComplementaryMasking,
    DPPMasking,
    Masking,
    PatchMask,
    RandomMasking,
    patch_kernel,
)
from mim_plugins.masking.kernels import unit_features

BASES = {
    "random": lambda **sizes: None,
    "dpp": lambda **sizes: DPPMasking(**sizes),
    "greedy": lambda **sizes: DPPMasking(tau=0.0, **sizes),
    "tau=1": lambda **sizes: DPPMasking(tau=1.0, **sizes),
}


def make(base: str, num_masks: int, **sizes: object) -> ComplementaryMasking:
    return ComplementaryMasking(num_masks, **sizes, base=BASES[base](**sizes))  # type: ignore[arg-type]


every_base = pytest.mark.parametrize("base", list(BASES))


def images(height: int = 32, width: int = 32, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def visible(mask: PatchMask, num_masks: int) -> torch.Tensor:
    """How often each patch of each image is visible, ``(B, N)``."""
    return (~mask.mask).view(num_masks, -1, mask.mask.shape[1]).sum(dim=0)


@every_base
@pytest.mark.parametrize(
    ("num_masks", "mask_ratio"), [(1, 0.75), (2, 0.5), (2, 0.75), (3, 2 / 3), (4, 0.75), (5, 0.8)]
)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_visible_sets_are_disjoint_and_counts_exact(
    base: str, num_masks: int, mask_ratio: float, height: int, width: int
) -> None:
    masking = make(base, num_masks, mask_ratio=mask_ratio, patch_size=4)
    mask = masking(images(height, width))
    patches = height * width // 16
    num_keep = int(patches * (1 - mask_ratio))
    assert mask.ids_keep.shape == (num_masks * 3, num_keep)
    rows = torch.arange(patches).expand(num_masks * 3, -1)
    assert torch.equal(mask.ids_shuffle.sort(dim=1).values, rows)
    times = visible(mask, num_masks)
    assert times.max() == 1
    assert times.sum(dim=1).tolist() == [num_masks * num_keep] * 3


@every_base
def test_four_masks_at_three_quarters_show_every_patch_once(base: str) -> None:
    mask = make(base, 4, mask_ratio=0.75, patch_size=4)(images())
    assert (visible(mask, 4) == 1).all()


@every_base
def test_rows_are_mask_by_mask(base: str) -> None:
    """Row m * B + b belongs to image b: content decides with DPPs, the noise otherwise."""
    masking = make(base, 2, mask_ratio=0.5, patch_size=4)
    batch, noise = images(), torch.rand(3, 64)
    order = torch.tensor([2, 0, 1])
    mask = masking(batch, noise=noise).mask.view(2, 3, 64)
    moved = masking(batch[order], noise=noise[order]).mask.view(2, 3, 64)
    assert torch.equal(moved, mask[:, order])


@every_base
def test_one_mask_is_the_base_alone_bit_for_bit(base: str) -> None:
    sizes = {"mask_ratio": 0.75, "patch_size": 4}
    alone = BASES[base](**sizes) or RandomMasking(**sizes)
    torch.manual_seed(1)
    expected = alone(images())
    torch.manual_seed(1)
    mask = make(base, 1, **sizes)(images())
    assert torch.equal(mask.ids_shuffle, expected.ids_shuffle)


@pytest.mark.parametrize("base", ["random", "tau=1"])
def test_random_masks_are_dealt_from_the_stock_permutation(base: str) -> None:
    torch.manual_seed(1)
    permutation = torch.rand(3, 64).argsort(dim=1)
    torch.manual_seed(1)
    mask = make(base, 4, mask_ratio=0.75, patch_size=4)(images())
    assert torch.equal(mask.ids_keep.view(4, 3, 16), permutation.view(3, 4, 16).transpose(0, 1))


def determinant_gain(L: torch.Tensor, chosen: list[int], item: int) -> float:
    """det(L of chosen + item) / det(L of chosen)."""
    both = torch.logdet(L[[*chosen, item]][:, [*chosen, item]])
    return (both - (torch.logdet(L[chosen][:, chosen]) if chosen else 0)).exp().item()


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_masks_choose_in_turns_what_enlarges_their_determinant_most(tau: float) -> None:
    """Against determinants computed from scratch, image by image and item by item."""
    sizes = {"mask_ratio": 0.75, "patch_size": 8}
    masking = ComplementaryMasking(3, **sizes, base=DPPMasking(tau=tau, **sizes))
    batch, noise = images(batch=4), torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    found = masking(batch, noise=noise).ids_keep.view(3, 4, 4)
    kernels = patch_kernel(unit_features(batch, (4, 4))).double()
    random_choices = 0
    for b, L in enumerate(kernels):
        free, sets = set(range(16)), [[], [], []]
        by_noise = noise[b].argsort().tolist()
        for turn in range(4):
            for m in (0, 1, 2) if turn % 2 == 0 else (2, 1, 0):
                gains = {j: determinant_gain(L, sets[m], j) for j in free} if turn else {}
                pick = max(gains, key=gains.__getitem__, default=None)
                if pick is None or gains[pick] <= tau:
                    random_choices += turn > 0
                    pick = next(j for j in by_noise if j in free)
                sets[m].append(pick)
                free.remove(pick)
        assert found[:, b].tolist() == sets
    assert (random_choices > 0) == (tau > 0)  # both rules are exercised


@pytest.mark.parametrize("shared", [False, True])
def test_every_mask_is_uniformly_random(shared: bool) -> None:
    masking = ComplementaryMasking(4, patch_size=8, shared=shared)
    generator = torch.Generator().manual_seed(0)
    batch = images(batch=2)
    draws = torch.stack([masking(batch, generator=generator).mask for _ in range(4000)])
    removed = draws.float().mean(dim=0)  # (8, 16)
    assert (removed - 0.75).abs().max() < 0.04  # 6 standard errors
    pairs = (~draws[:, 0, 0] & ~draws[:, 0, 1]).float().mean()
    assert pairs.item() == pytest.approx(4 * 3 / (16 * 15), abs=0.02)


def test_shared_masks_are_equal_within_the_batch_only() -> None:
    masking = ComplementaryMasking(4, patch_size=4, shared=True)
    mask = masking(images()).mask.view(4, 3, 64)
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert not torch.equal(masking(images()).mask.view(4, 3, 64), mask)
    own = ComplementaryMasking(4, patch_size=4)(images()).mask.view(4, 3, 64)
    assert not torch.equal(own, own[:, :1].expand_as(own))


def test_units_stay_whole() -> None:
    for base in ("random", "greedy"):
        mask = make(base, 4, mask_ratio=0.75, patch_size=4, mask_unit=8)(images())
        units = mask.mask.view(12, 4, 2, 4, 2).transpose(2, 3).flatten(3)
        assert torch.equal(units.all(dim=3), units.any(dim=3))
        assert (visible(mask, 4) == 1).all()


def log_volume(batch: torch.Tensor, mask: PatchMask, num_masks: int) -> torch.Tensor:
    """Mean log-determinant of the visible patches' similarities, per mask."""
    L = patch_kernel(unit_features(batch, (8, 8))).repeat(num_masks, 1, 1).double()
    ids = mask.ids_keep
    rows = L.gather(1, ids[:, :, None].expand(-1, -1, 64))
    square = rows.gather(2, ids[:, None].expand(-1, ids.shape[1], -1))
    jitter = 1e-6 * torch.eye(ids.shape[1], dtype=torch.float64)
    return torch.logdet(square + jitter).view(num_masks, -1).mean(dim=1)


def test_dpp_masks_are_more_diverse_than_random_ones_on_photographs() -> None:
    pytest.importorskip("skimage", reason="the photographs are scikit-image's")
    rng = np.random.default_rng(0)
    crops = [crop for name in PHOTOS for crop in photo_crops(name, 4, 64, True, rng)]
    batch = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
    batch = batch.permute(0, 3, 1, 2).float() / 255
    sizes = {"mask_ratio": 0.75, "patch_size": 8}
    torch.manual_seed(0)
    dpp = log_volume(batch, make("greedy", 4, **sizes)(batch), 4)
    random = log_volume(batch, make("random", 4, **sizes)(batch), 4)
    # Every patch is visible in one of them, so no mask can be much better than the others.
    assert dpp.min() > random.max()
    assert dpp.max() - dpp.min() < 2


@every_base
def test_constant_images(base: str) -> None:
    mask = make(base, 4, mask_ratio=0.75, patch_size=4)(torch.zeros(2, 3, 32, 32))
    assert (visible(mask, 4) == 1).all()


def test_half_precision_and_batch_of_one() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        mask = make("dpp", 4, mask_ratio=0.75, patch_size=4)(images(batch=1).to(dtype))
        assert (visible(mask, 4) == 1).all()


def test_deterministic_under_a_generator_and_copies() -> None:
    masking = make("dpp", 4, mask_ratio=0.75, patch_size=4)
    drawn = [
        m(images(), generator=torch.Generator().manual_seed(3)).ids_shuffle
        for m in (masking, copy.deepcopy(masking), pickle.loads(pickle.dumps(masking)))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert "num_masks=4" in repr(masking)
    assert isinstance(masking, Masking)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_masks": 5, "mask_ratio": 0.75}, ValueError,
         r"num_masks \* \(1 - mask_ratio\) must be at most 1 .* got 5 \* \(1 - 0.75\) = 1.25"),
        ({"mask_ratio": 0.6}, ValueError, "must be at most 1"),
        ({"num_masks": 0}, ValueError, "num_masks must be at least 1, got 0"),
        ({"num_masks": 2.0}, TypeError, "num_masks must be an int, got 2.0"),
        ({"num_masks": True}, TypeError, "num_masks must be an int, got True"),
        ({"base": "dpp"}, TypeError, "base must be a DPPMasking or None"),
        ({"base": RandomMasking()}, TypeError, "base must be a DPPMasking or None"),
        ({"base": DPPMasking(patch_size=8), "patch_size": 16}, ValueError,
         "patch_size is 8 in the masking and 16 in what uses it"),
        ({"base": DPPMasking(mask_ratio=0.8), "mask_ratio": 0.75}, ValueError, "mask_ratio is 0.8"),
        ({"base": DPPMasking(mask_unit=32), "mask_unit": 16}, ValueError, "mask_unit is 32"),
        ({"base": DPPMasking(mask_ratio=0.6)}, ValueError, "must be at most 1"),
        ({"base": DPPMasking(method="exact")}, ValueError, "base must have method='greedy'"),
        ({"base": DPPMasking(), "shared": True}, ValueError, "shared=True needs base=None"),
        ({"mask_ratio": 1.0}, ValueError, "mask_ratio must be in"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ComplementaryMasking(**arguments)


def test_settings_of_the_base_are_those_of_all_masks() -> None:
    """Given there or beside it, they do the same; the ratio of the model is checked when known."""
    beside = ComplementaryMasking(2, base=DPPMasking(), mask_ratio=0.5, patch_size=4, mask_unit=8)
    there = ComplementaryMasking(2, base=DPPMasking(mask_ratio=0.5, patch_size=4, mask_unit=8))
    noise = torch.rand(3, 16)
    expected = beside(images(), noise=noise).ids_shuffle
    assert torch.equal(there(images(), noise=noise).ids_shuffle, expected)
    with pytest.raises(ValueError, match=r"got 4 \* \(1 - 0.6\) = 1.6"):
        ComplementaryMasking(4)(images(), mask_ratio=0.6, patch_size=4)
