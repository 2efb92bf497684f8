"""Abstraction profiles against closed forms, enumeration and exact symmetries."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from mim_plugins.analysis import (
    AbstractionProfile,
    LatentHierarchy,
    abstraction_profile,
    mask_abstraction,
    plot_abstraction_profile,
)
from mim_plugins.apps.photos import photo_crops
from mim_plugins.masking import (
    BlockMasking,
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    HierarchicalMasking,
    PatchMask,
    RandomMasking,
)

TREE = LatentHierarchy.quadtree((8, 8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks_of_size(number: int, masked: int) -> torch.Tensor:
    ids = torch.tensor(list(itertools.combinations(range(number), masked)))
    return torch.zeros(len(ids), number, dtype=torch.bool).scatter_(1, ids, True)


def located_by_chance(total: int, masked: int, block: int, children: int) -> float:
    """P(a block of patches is mixed and none of its children is), by counting masks."""

    def chance(removed: int) -> float:  # that ``removed`` given patches of the block are masked
        if removed > masked or block - removed > total - masked:
            return 0.0
        return math.comb(total - block, masked - removed) / math.comb(total, masked)

    return sum(
        math.comb(children, whole) * chance(whole * block // children)
        for whole in range(1, children)
    )


@pytest.mark.parametrize("masked", [1, 2, 5, 8, 13])
def test_random_masks_on_a_tree_have_a_closed_form(masked: int) -> None:
    """All masks of one size are equally likely under random masking."""
    hierarchy = LatentHierarchy.quadtree((1, 16), (1, 2))
    found = mask_abstraction(hierarchy, masks_of_size(16, masked))
    for height in range(1, 5):
        expected = located_by_chance(16, masked, 2**height, 2)
        assert found.located[:, height - 1].mean().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("ratio", "unit"), [(0.1, 4), (0.25, 4), (0.5, 8), (0.75, 8), (0.9, 4)])
def test_intervals_cover_the_closed_form(ratio: float, unit: int) -> None:
    """95 % intervals over 200 profiles miss about 10 times."""
    hierarchy = LatentHierarchy.quadtree((8, 8), depth=3)
    units = (32 // unit) ** 2
    masked = units - int(units * (1 - ratio))
    height = 1 if unit == 4 else 2  # the first height at which units are mixed
    expected = located_by_chance(units, masked, 4, 4)
    covered = 0
    for seed in range(200):
        profile = abstraction_profile(
            hierarchy, RandomMasking, [ratio], [unit], 100, patch_size=4, generator=seeded(seed)
        )
        mean, half_width = (part[0, 0, height - 1].item() for part in profile.located)
        covered += abs(mean - expected) <= half_width
        assert profile.located.mean[0, 0, : height - 1].sum() == 0
    assert 177 <= covered < 200


def test_unit_sets_the_lowest_height() -> None:
    profile = abstraction_profile(TREE, RandomMasking, [0.25, 0.5], [4, 8, 16], 64, patch_size=4)
    for column in range(3):
        assert bool((profile.lowest.mean[:, column] >= column + 1).all())
        assert bool((profile.located.mean[:, column, :column] == 0).all())
    # Where blocks and units are not aligned a larger unit raises nothing.
    shifted = LatentHierarchy.quadtree((8, 8), offset=1)
    profile = abstraction_profile(shifted, RandomMasking, [0.5], [8, 16], 64, patch_size=4)
    assert profile.lowest.mean.tolist() == [[1.0, 1.0]]


def test_profiles_are_symmetric_in_the_mask_ratio() -> None:
    """c is the same for a mask and its complement, so equal counts give equal profiles."""
    for masked in range(1, 6):
        one = mask_abstraction(LatentHierarchy.quadtree((3, 4)), masks_of_size(12, masked))
        other = mask_abstraction(LatentHierarchy.quadtree((3, 4)), masks_of_size(12, 12 - masked))
        for a, b in zip(one, other, strict=True):  # enumeration yields them in other orders
            assert torch.equal(a.sort(dim=0).values, b.sort(dim=0).values)


def test_profiles_at_01_and_09_coincide_exactly() -> None:
    """The same random numbers: what one removes is what the other keeps.

    20 of 200 units at 0.1; 0.9 itself keeps 19 of them, ``int(200 * (1 - 0.9))`` in
    floating point, hence the tiny correction.
    """
    hierarchy = LatentHierarchy.quadtree((10, 20))
    mirrored = 0.9 - 1e-9

    def masking(mask_ratio: float, **kwargs: int):  # type: ignore[no-untyped-def]
        base = RandomMasking(mask_ratio=mask_ratio, **kwargs)

        def draw(images: torch.Tensor, generator: torch.Generator) -> PatchMask:
            noise = torch.rand(len(images), 200, generator=generator, dtype=torch.float64)
            return base(images, noise=noise if mask_ratio < 0.5 else -noise)

        return draw

    one, other = (
        abstraction_profile(hierarchy, masking, [ratio], samples=50, generator=seeded())
        for ratio in (0.1, mirrored)
    )
    assert one.height.mean.item() >= 1.0
    for name in ("height", "lowest", "highest", "size", "located"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            assert torch.equal(a, b)


def test_extreme_ratios_are_lowest_on_a_binary_tree_and_the_middle_is_little_higher() -> None:
    """The paper's claim about extremes, exactly, on a tree in the manner of its figure 4."""
    hierarchy = LatentHierarchy.quadtree((1, 8), (1, 2))
    heights = [
        mask_abstraction(hierarchy, masks_of_size(8, masked)).height.mean().item()
        for masked in range(1, 8)
    ]
    assert heights[0] == heights[-1] == 1.0
    assert max(heights) == heights[3]
    assert heights[3] == pytest.approx(1.19, abs=0.005)


def test_mask_abstraction() -> None:
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[0, 0, 0] = True
    mask[1, :4] = True  # half of the image
    mask[2, :4] = True
    mask[2, 7, 7] = True  # and one more patch: its low latent takes the place of the root
    mask[3] = True
    found = mask_abstraction(TREE, mask.flatten(1))
    nan = torch.nan
    torch.testing.assert_close(
        torch.stack([found.height, found.lowest, found.highest, found.size]),
        torch.tensor([[1, 3, 1, nan], [1, 3, 1, nan], [1, 3, 1, nan], [1, 1, 1, 0]]).double(),
        equal_nan=True,
    )
    assert found.located.tolist()[:2] == [[1 / 16, 0, 0], [0, 0, 1]]
    mixed = torch.zeros(1, 8, 8, dtype=torch.bool)
    mixed[0, 0, 0] = mixed[0, :2, 4:6] = True
    found = mask_abstraction(TREE, mixed.flatten(1))
    assert [found.height, found.lowest, found.highest] == [1.5, 1.0, 2.0]


@pytest.mark.parametrize(
    "masking",
    [
        RandomMasking,
        GridMasking,
        BlockMasking,
        partial(HierarchicalMasking, TREE, level=2),
        partial(ComplementaryMasking, 2),
    ],
)
def test_every_masking(masking) -> None:  # type: ignore[no-untyped-def]
    profile = abstraction_profile(TREE, masking, [0.5, 0.75], None, 32, 4, generator=seeded())
    again = abstraction_profile(TREE, masking, [0.5, 0.75], None, 32, 4, generator=seeded())
    assert profile.height.mean.shape == (2, 1)
    assert profile.located.mean.shape == (2, 1, 3)
    assert torch.equal(profile.height.mean, again.height.mean)
    assert bool((profile.lowest.mean <= profile.height.mean).all())
    assert bool((profile.height.mean <= profile.highest.mean).all())
    assert profile.empty.tolist() == [[0.0], [0.0]]
    counts = torch.tensor([16.0, 4.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(profile.located.mean @ counts, profile.size.mean)


def test_dpp_looks_at_real_images() -> None:
    rng = np.random.default_rng(0)
    crops = [c for name in ("camera", "coffee") for c in photo_crops(name, 4, 64, True, rng)]
    images = torch.from_numpy(np.stack([np.asarray(c) for c in crops])).permute(0, 3, 1, 2) / 255
    dpp = partial(DPPMasking, tau=0.0)
    profile = abstraction_profile(
        TREE, dpp, [0.75], samples=32, patch_size=8, images=images, generator=seeded()
    )
    assert profile.samples == 8  # four masks of each of eight images
    seen: list[torch.Tensor] = []

    def masking(**kwargs: float):  # type: ignore[no-untyped-def]
        def draw(images: torch.Tensor, generator: torch.Generator) -> PatchMask:
            seen.append(images)
            return dpp(**kwargs)(images, generator=generator)

        return draw

    abstraction_profile(TREE, masking, [0.75], samples=5, patch_size=8, images=images, batch_size=2)
    assert torch.equal(torch.cat(seen), images[:5])


def test_masks_of_one_image_count_as_one_draw() -> None:
    """Complementary masks and several draws per image do not narrow the interval falsely."""

    def same_masks(**kwargs: float):  # type: ignore[no-untyped-def]
        single = RandomMasking(**kwargs)

        def draw(images: torch.Tensor, generator: torch.Generator | None) -> PatchMask:
            mask = single(images, generator=generator)
            return PatchMask(mask.ids_shuffle.repeat(9, 1), mask.num_keep)

        return draw

    one = abstraction_profile(TREE, RandomMasking, [0.5], None, 40, 4, generator=seeded())
    nine = abstraction_profile(TREE, same_masks, [0.5], None, 40, 4, generator=seeded())
    torch.testing.assert_close(one.size.mean, nine.size.mean)
    torch.testing.assert_close(one.size.half_width, nine.size.half_width)
    found = mask_abstraction(
        TREE,
        RandomMasking(mask_ratio=0.5, patch_size=4)(
            torch.zeros(40, 1, 32, 32), generator=seeded()
        ).mask,
    )
    expected = 1.959964 * found.size.std() / math.sqrt(40)
    torch.testing.assert_close(one.size.half_width[0, 0], expected)


def test_several_draws_per_image_count_as_one() -> None:
    """Masks that depend on the image alone: more rounds over the images add nothing."""
    images = torch.rand(8, 1, 32, 32, generator=seeded())

    def by_content(mask_ratio: float, **kwargs: int):  # type: ignore[no-untyped-def]
        def draw(images: torch.Tensor, generator: torch.Generator | None) -> PatchMask:
            return PatchMask.from_scores(images[:, 0, ::4, ::4].flatten(1), 32)

        return draw

    once, often = (
        abstraction_profile(TREE, by_content, [0.5], samples=samples, patch_size=4, images=images)
        for samples in (8, 32)
    )
    assert once.samples == often.samples == 8
    assert once.size.half_width.item() > 0
    torch.testing.assert_close(once.size.half_width, often.size.half_width)


def test_masks_that_locate_nothing_are_left_out_of_heights() -> None:
    """Two trees without a common root: a mask of one tree shares nothing."""
    edges = [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
    hierarchy = LatentHierarchy(edges, range(4), grid=(2, 2))
    profile = abstraction_profile(hierarchy, RandomMasking, [0.5], samples=300, generator=seeded())
    assert profile.empty.item() == pytest.approx(1 / 3, abs=0.08)
    assert profile.height.mean.item() == 1.0
    assert profile.size.mean.item() == pytest.approx(2 * (1 - profile.empty.item()))


def some_profile() -> AbstractionProfile:
    return abstraction_profile(
        TREE, RandomMasking, [0.25, 0.5], [4, 8], 64, patch_size=4, generator=seeded()
    )


def test_table() -> None:
    lines = some_profile().table().splitlines()
    assert lines[0] == "| masking unit | 0.25 | 0.5 |"
    assert lines[2].startswith("| 4 px | 1.00 ± 0.00 |")
    assert len(lines) == 4
    assert lines != some_profile().table("size").splitlines()
    with pytest.raises(ValueError, match="quantity must be .*, got 'located'"):
        some_profile().table("located")


def test_plot_shows_the_numbers() -> None:
    profile = some_profile()
    figure = plot_abstraction_profile({"one": profile, "two": profile})
    assert len(figure.axes) == 4
    upper, lower = figure.axes[0], figure.axes[3]
    assert upper.get_title() == "masking unit 4 px"
    heights = upper.containers[0].lines[0].get_ydata()
    assert heights.tolist() == profile.height.mean[:, 0].tolist()
    sizes = lower.containers[1].lines[0].get_ydata()
    assert sizes.tolist() == profile.size.mean[:, 1].tolist()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    with pytest.raises(ValueError, match="profiles must name at least one profile"):
        plot_abstraction_profile({})
    other = abstraction_profile(TREE, RandomMasking, [0.5], [4], 4, patch_size=4)
    with pytest.raises(ValueError, match=r"the same masking units, got \[\(4, 8\), \(4,\)\]"):
        plot_abstraction_profile({"one": profile, "other": other})


def test_rejects_arguments() -> None:
    profile = partial(abstraction_profile, TREE, RandomMasking, patch_size=4)
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        profile(samples=1)
    with pytest.raises(ValueError, match="ratios must name at least one"):
        profile(ratios=[])
    with pytest.raises(ValueError, match="units must name at least one"):
        profile(units=[])
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        profile(confidence=95)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        profile(batch_size=0)
    with pytest.raises(ValueError, match=r"images must have shape \(B >= 2, C, 32, 32\)"):
        profile(images=torch.zeros(4, 3, 64, 64))
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\), got 1.0"):
        profile(ratios=[1.0])
    with pytest.raises(ValueError, match="keeps none of the 4 masking units"):
        profile(ratios=[0.9], units=[16])
    for masking in (DPPMasking, lambda **kw: ComplementaryMasking(2, base=DPPMasking(**kw), **kw)):
        with pytest.raises(ValueError, match="images must be given for .*DPPMasking"):
            abstraction_profile(TREE, masking, [0.5], patch_size=4)
    with pytest.raises(ValueError, match="hierarchy must have a grid"):
        abstraction_profile(LatentHierarchy([("a", 0), ("a", 1)], [0, 1]), RandomMasking)
    with pytest.raises(ValueError, match=r"mask must have shape \(M, N\), got \(64,\)"):
        mask_abstraction(TREE, torch.zeros(64))
