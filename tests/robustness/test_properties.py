"""What holds for all shapes, ratios, units, dtypes, devices and orders (hypothesis)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mim_plugins.analysis import LatentHierarchy
from mim_plugins.masking import (
    BlockMasking,
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    HierarchicalMasking,
    Masking,
    PatchMask,
    RandomMasking,
    greedy_map,
)
from mim_plugins.mixmask import EraseMask, Mixer, MixMask, UnMix
from mim_plugins.regularizers import (
    MutualInformationLoss,
    boundary_weights,
    club,
    infonce,
    uniformity,
)

few = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

dtypes, devices = st.sampled_from(DTYPES), st.sampled_from(DEVICES)
seeds = st.integers(0, 2**31)
ratios = st.floats(0.001, 0.999)

# All but HierarchicalMasking and ComplementaryMasking, which fit a grid or a ratio of their own.
MASKINGS: dict[str, Callable[..., Masking]] = {
    "random": RandomMasking,
    "grid": GridMasking,
    "block": BlockMasking,
    "dpp": lambda **arguments: DPPMasking(tau=0.3, **arguments),
    "dpp greedy": lambda **arguments: DPPMasking(tau=0.0, kernel="cosine", **arguments),
    "dpp exact": lambda **arguments: DPPMasking(method="exact", features="pixels", **arguments),
}


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@st.composite
def batches(draw: Any, smallest: int = 1, side: int = 8) -> tuple[Tensor, int, int]:
    """Images of any content, shape, dtype and device, their patch size and masking unit."""
    patch = draw(st.integers(1, 5))
    unit = patch * draw(st.integers(1, 3))
    rows, cols = draw(st.integers(1, side)), draw(st.integers(1, side))
    shape = (draw(st.integers(smallest, 4)), draw(st.integers(1, 4)), rows * unit, cols * unit)
    images = torch.randn(shape, generator=seeded(draw(seeds)))
    content = draw(st.sampled_from(["noise", "constant", "large", "duplicates"]))
    if content == "constant":
        images = torch.full_like(images, 0.3)
    elif content == "large":
        images = images * 1e4
    elif content == "duplicates":
        images = images[:, :, :1, :1].expand(shape)
    return images.to(draw(dtypes)).to(draw(devices)), patch, unit


def check(mask: PatchMask, rows: int, num_keep: int, num: int) -> None:
    """A permutation per row, and every derived field follows from it."""
    assert mask.ids_shuffle.shape == (rows, num)
    assert mask.num_keep == num_keep
    everything = torch.arange(num, device=mask.ids_shuffle.device).expand(rows, -1)
    assert torch.equal(mask.ids_shuffle.sort(dim=1).values, everything)
    assert torch.equal(mask.ids_shuffle.gather(1, mask.ids_restore), everything)
    assert mask.mask.sum(dim=1).tolist() == [num - num_keep] * rows
    assert not mask.mask.gather(1, mask.ids_keep).any()
    assert mask.mask.gather(1, mask.ids_mask).all()


# -- masking -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MASKINGS.values(), ids=MASKINGS)
@few
@given(batch=batches(), ratio=ratios, seed=seeds)
def test_masks_keep_the_exact_count_in_whole_units(
    make: Callable[..., Masking], batch: tuple[Tensor, int, int], ratio: float, seed: int
) -> None:
    images, patch, unit = batch
    number, _, height, width = images.shape
    masking = make(mask_ratio=ratio, patch_size=patch, mask_unit=unit)
    rows, cols, side = height // unit, width // unit, unit // patch
    num_keep = int(rows * cols * (1 - ratio))
    if num_keep < 1:
        with pytest.raises(ValueError, match=f"mask_ratio={ratio} keeps none"):
            masking(images)
        return
    mask = masking(images, generator=seeded(seed, images.device.type))
    assert mask.ids_shuffle.device == images.device
    check(mask, number, num_keep * side**2, rows * cols * side**2)
    units = mask.mask.view(number, rows, side, cols, side).transpose(2, 3).flatten(3)
    assert torch.equal(units.any(dim=3), units.all(dim=3))
    again = masking(images, generator=seeded(seed, images.device.type))
    assert torch.equal(mask.ids_shuffle, again.ids_shuffle)


@few
@given(batch=batches(), num_masks=st.integers(1, 5), seed=seeds, shared=st.booleans())
def test_complementary_masks_are_disjoint_and_cover_all_they_can(
    batch: tuple[Tensor, int, int], num_masks: int, seed: int, shared: bool
) -> None:
    images, patch, unit = batch
    ratio = 1 - 1 / num_masks if num_masks > 1 else 0.5
    rows, cols = images.shape[2] // unit, images.shape[3] // unit
    num_keep = int(rows * cols * (1 - ratio))
    arguments: dict[str, Any] = {"mask_ratio": ratio, "patch_size": patch, "mask_unit": unit}
    base = None if shared else DPPMasking(tau=0.5, **arguments)
    masking = ComplementaryMasking(num_masks, base=base, shared=shared, **arguments)
    if num_keep < 1:
        with pytest.raises(ValueError, match="keeps none"):
            masking(images)
        return
    mask = masking(images, generator=seeded(seed, images.device.type))
    side = (unit // patch) ** 2
    check(mask, num_masks * len(images), num_keep * side, rows * cols * side)
    times_seen = (~mask.mask).view(num_masks, len(images), -1).sum(dim=0)
    assert times_seen.max() <= 1
    assert times_seen.sum(dim=1).tolist() == [num_masks * num_keep * side] * len(images)


@few
@given(
    rows=st.integers(2, 9), cols=st.integers(1, 9), branching=st.integers(2, 3),
    level=st.integers(0, 1), ratio=ratios, seed=seeds,
)  # fmt: skip
def test_hierarchical_masks_keep_the_exact_count(
    rows: int, cols: int, branching: int, level: int, ratio: float, seed: int
) -> None:
    hierarchy = LatentHierarchy.quadtree((rows, cols), branching)
    level = min(level, hierarchy.height - 1)
    masking = HierarchicalMasking(hierarchy, level=level, mask_ratio=ratio, patch_size=2)
    num_keep = int(rows * cols * (1 - ratio))
    if num_keep:
        mask = masking(torch.zeros(2, 3, 2 * rows, 2 * cols), generator=seeded(seed))
        check(mask, 2, num_keep, rows * cols)


@few
@given(
    num=st.integers(2, 12), dim=st.integers(1, 6), tau=st.sampled_from([0.0, 0.2, 0.9]),
    order=st.randoms(use_true_random=False), seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.float64]), device=devices, data=st.data(),
)  # fmt: skip
def test_greedy_choice_follows_a_permutation_of_the_items(
    num: int, dim: int, tau: float, order: Any, seed: int, dtype: torch.dtype, device: str,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Permuted kernel and noise choose the same items, in the same order, under new names."""
    x = torch.randn(2, num, dim, generator=seeded(seed), dtype=torch.float64)
    kernel = torch.exp(-torch.cdist(x, x).square() / 2)
    noise = torch.rand(2, num, generator=seeded(seed + 1))
    k = data.draw(st.integers(1, min(num, 4)))
    permutation = list(range(num))
    order.shuffle(permutation)
    chosen = greedy_map(kernel.to(dtype).to(device), k, tau, noise=noise.to(device))
    moved = kernel[:, permutation][:, :, permutation].to(dtype).to(device)
    again = greedy_map(moved, k, tau, noise=noise[:, permutation].to(device))
    names = torch.tensor(permutation, device=device)
    assert torch.equal(names[again], chosen)


@few
@given(batch=batches(smallest=2), seed=seeds, tau=st.sampled_from([0.0, 0.5, 1.0]))
def test_masks_of_a_batch_are_those_of_its_images(
    batch: tuple[Tensor, int, int], seed: int, tau: float
) -> None:
    """The same noise gives an image the same mask, wherever it stands in whatever batch."""
    images, patch, unit = batch
    masking = DPPMasking(mask_ratio=0.5, patch_size=patch, mask_unit=unit, tau=tau)
    units = images.shape[2] * images.shape[3] // unit**2
    if units < 2:
        return
    noise = torch.rand(len(images), units, generator=seeded(seed)).to(images.device)
    whole = masking(images, noise=noise).mask
    assert torch.equal(masking(images.flip(0), noise=noise.flip(0)).mask, whole.flip(0))
    assert torch.equal(masking(images[1:2], noise=noise[1:2]).mask, whole[1:2])


# -- mixing --------------------------------------------------------------------------------


@st.composite
def mixers(draw: Any) -> Mixer:
    """Any mixer whose images show two of the batch."""
    permutation = draw(st.sampled_from(["inverse", "random"]))
    if draw(st.booleans()):
        return UnMix(draw(st.floats(0, 1)), draw(st.floats(0.01, 10)), permutation)
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    ratio = (low, high) if low < high and draw(st.booleans()) else draw(ratios)
    mask = draw(st.sampled_from(["block", "random", "grid"]))
    return MixMask(mask, draw(st.integers(2, 7)), ratio, permutation)


def views(data: st.DataObject, number: int) -> list[Tensor]:
    batch, channels = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 4))
    height, width = data.draw(st.integers(7, 20)), data.draw(st.integers(7, 20))
    shape = (batch, channels, height, width)
    made = torch.rand(number, *shape, generator=seeded(data.draw(seeds)))
    return list(made.to(data.draw(dtypes)).to(data.draw(devices)))


@few
@given(mixer=mixers(), seed=seeds, data=st.data())
def test_every_pixel_is_an_images_own_or_its_partners(
    mixer: Mixer, seed: int, data: st.DataObject
) -> None:
    (images,) = views(data, 1)
    mix = mixer(images, seeded(seed))
    assert mix.images.shape == images.shape
    assert mix.images.dtype == images.dtype
    assert torch.equal(mix.permutation.sort().values, torch.arange(len(images)).to(images.device))
    assert torch.equal(mix.permutation[mix.inverse].sort().values, mix.permutation.sort().values)
    partner = images[mix.permutation]
    if mix.mask is None:
        expected = mix.lam * images.double() + (1 - mix.lam) * partner.double()
        error = (mix.images.double() - expected).abs().max()
        assert error <= 2 * torch.finfo(images.dtype).eps
    else:
        assert torch.equal(mix.images, torch.where(mix.mask, images, partner))
        assert mix.lam == int(mix.mask.sum()) / mix.mask.numel()
        assert 0 < mix.lam < 1


@few
@given(mixer=mixers(), seed=seeds, data=st.data())
def test_mixing_with_itself_is_the_identity(mixer: Mixer, seed: int, data: st.DataObject) -> None:
    (images,) = views(data, 1)
    same = images[:1].expand_as(images)
    mixed = mixer(same, seeded(seed)).images.double()
    assert (mixed - same.double()).abs().max() <= 2 * torch.finfo(images.dtype).eps


@few
@given(mixer=mixers(), seed=seeds, data=st.data())
def test_views_share_mask_share_and_partner(mixer: Mixer, seed: int, data: st.DataObject) -> None:
    both = views(data, 2)
    alone = mixer(both[0], seeded(seed))
    first, second = mixer(both, seeded(seed))
    assert torch.equal(first.images, alone.images)
    assert first.lam == second.lam == alone.lam
    assert torch.equal(first.permutation, second.permutation)
    if first.mask is not None:
        partner = both[1][second.permutation]
        assert torch.equal(second.images, torch.where(first.mask, both[1], partner))


@few
@given(seed=seeds, fill=st.sampled_from(["zero", "mean", "noise"]), ratio=ratios, data=st.data())
def test_erased_halves_complete_each_other(
    seed: int, fill: str, ratio: float, data: st.DataObject
) -> None:
    (images,) = views(data, 1)
    mix = EraseMask(fill, grid_size=3, ratio=ratio)(images, seeded(seed))
    assert mix.complement is not None
    assert mix.images.dtype == mix.complement.dtype == images.dtype
    assert torch.equal(torch.where(mix.mask, mix.images, mix.complement), images)
    assert mix.images.isfinite().all()


# -- regularizers --------------------------------------------------------------------------


@few
@given(num=st.integers(1, 20), dim=st.integers(1, 20), dtype=dtypes, device=devices, seed=seeds,
       scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]))  # fmt: skip
@example(num=1, dim=1, dtype=torch.float16, device="cpu", seed=0, scale=1e4)
def test_uniformity_is_finite_bounded_and_blind_to_order(
    num: int, dim: int, dtype: torch.dtype, device: str, seed: int, scale: float
) -> None:
    x = scale * torch.randn(num, dim, generator=seeded(seed))
    x = x.to(dtype).to(device).requires_grad_()
    loss = uniformity(x)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert -1e-6 <= loss <= 1 + 1e-5
    order = torch.randperm(num, generator=seeded(seed)).to(device)
    torch.testing.assert_close(uniformity(x[order]), loss, rtol=1e-4, atol=1e-6)
    axes = torch.randperm(dim, generator=seeded(seed)).to(device)
    torch.testing.assert_close(uniformity(x[:, axes]), loss, rtol=1e-4, atol=1e-6)


@few
@given(num=st.integers(1, 12), dim=st.integers(1, 12), dtype=dtypes, device=devices, seed=seeds,
       scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]))  # fmt: skip
def test_information_bounds_are_finite_and_blind_to_order(
    num: int, dim: int, dtype: torch.dtype, device: str, seed: int, scale: float
) -> None:
    made = (scale * torch.randn(4, num, dim, generator=seeded(seed))).to(dtype).to(device)
    query, key, mean, log_variance = made
    order = torch.randperm(num, generator=seeded(seed)).to(device)
    lower = infonce(query, key)
    assert lower.isfinite()
    assert lower <= torch.tensor(float(num)).log() + 1e-4
    torch.testing.assert_close(infonce(query[order], key[order]), lower, rtol=1e-3, atol=1e-4)
    log_variance = log_variance.clamp(-5, 5)
    upper = club(query[None], mean[None], log_variance[None])
    assert upper.isfinite()
    moved = club(query[None, order], mean[None, order], log_variance[None, order])
    torch.testing.assert_close(moved, upper, rtol=1e-3, atol=1e-3 * max(1.0, scale**2))


@few
@given(batch=st.integers(1, 5), num_masks=st.integers(2, 4), dtype=dtypes, seed=seeds)
def test_information_terms_are_blind_to_the_order_of_images(
    batch: int, num_masks: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(0)
    loss_fn = MutualInformationLoss(dim=6, output_weight=0.1, hidden_dim=8, projection_dim=4)
    images = torch.rand(batch, 3, 16, 16, generator=seeded(seed)).to(dtype)
    masks = ComplementaryMasking(num_masks, patch_size=4)(images, generator=seeded(seed)).mask
    tokens = torch.randn(num_masks * batch, 5, 6, generator=seeded(seed)).to(dtype)
    order = torch.randperm(batch, generator=seeded(seed))
    rows = torch.cat([order + m * batch for m in range(num_masks)])
    loss = loss_fn(tokens, images=images, mask=masks, num_masks=num_masks)
    moved = loss_fn(tokens[rows], images=images[order], mask=masks[rows], num_masks=num_masks)
    assert loss.isfinite()
    torch.testing.assert_close(moved, loss, rtol=1e-3, atol=1e-4)


@few
@given(rows=st.integers(1, 6), cols=st.integers(1, 6), patch=st.integers(1, 5),
       width=st.integers(0, 12), weight=st.floats(0, 1), seed=seeds)  # fmt: skip
def test_boundary_weights_turn_with_the_mask(
    rows: int, cols: int, patch: int, width: int, weight: float, seed: int
) -> None:
    mask = torch.rand(2, rows, cols, generator=seeded(seed)) < 0.6
    weights = boundary_weights(mask, (rows, cols), patch, width, boundary_weight=weight)
    for axis in (1, 2):
        flipped = boundary_weights(
            mask.flip(axis), (rows, cols), patch, width, boundary_weight=weight
        )
        assert torch.equal(flipped, weights.flip(axis))
    turned = boundary_weights(mask.mT, (cols, rows), patch, width, boundary_weight=weight)
    assert torch.equal(turned, weights.mT)
    pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    assert (weights[~pixels] == 0).all()
    assert ((weights[pixels] >= weight - 1e-6) & (weights[pixels] <= 1)).all()
