"""Masks along a latent hierarchy: exact counts, whole latents, what is located."""

import pickle

import networkx as nx
import pytest
import torch

from mim_plugins.analysis import LatentHierarchy, mask_abstraction, shared_latents
from mim_plugins.masking import HierarchicalMasking, RandomMasking

IMAGES = torch.zeros(64, 1, 32, 32)
TREE = LatentHierarchy.quadtree((16, 16))  # at patch size 2


def draw(seed: int = 0, **kwargs) -> torch.Tensor:
    masking = HierarchicalMasking(TREE, patch_size=2, **kwargs)
    return masking(IMAGES, generator=torch.Generator().manual_seed(seed)).mask


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("mask_ratio", [0.1, 0.33, 0.5, 0.75, 0.9])
def test_exact_count_and_one_low_latent_at_most(level: int, mask_ratio: float) -> None:
    mask = draw(level=level, mask_ratio=mask_ratio)
    assert mask.sum(dim=1).tolist() == [256 - int(256 * (1 - mask_ratio))] * 64
    c = shared_latents(TREE, mask).c
    low = c[:, TREE.heights <= level].sum(dim=1)
    assert low.max() <= 1
    if level == 0:
        assert c.any()


@pytest.mark.parametrize("level", [1, 2, 3])
def test_whole_latents_are_removed_where_the_count_allows(level: int) -> None:
    mask = draw(level=level, mask_ratio=0.75)
    found = mask_abstraction(TREE, mask)
    assert bool((found.lowest > level).all())
    side = 2**level
    blocks = mask.view(64, 16 // side, side, 16 // side, side).sum(dim=(2, 4))
    assert set(blocks.unique().tolist()) == {0, side**2}
    # Every block is as likely to go as any other.
    share = (blocks > 0).flatten(1).float().mean(dim=0)
    assert share.min() > 0.5
    assert share.max() < 0.95


def test_level_0_is_random_masking_bit_for_bit() -> None:
    random = RandomMasking(mask_ratio=0.6, patch_size=2)(
        IMAGES, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(draw(3, level=0, mask_ratio=0.6), random.mask)


def test_deterministic_under_a_generator_and_images_differ() -> None:
    first = draw(1, level=2)
    assert torch.equal(first, draw(1, level=2))
    assert not torch.equal(first, draw(2, level=2))
    assert len(first.unique(dim=0)) > 60


def test_masking_units_and_config_arguments() -> None:
    masking = HierarchicalMasking({"grid": (8, 8)}, level=1, patch_size=2, mask_unit=4)
    mask = masking(IMAGES).mask.view(64, 4, 4, 4, 4).sum(dim=(2, 4))
    assert set(mask.unique().tolist()) == {0, 16}
    assert masking(IMAGES[:1]).num_keep == 64


def test_any_graph() -> None:
    # Overlapping latents, and an observable that only the root shows.
    edges = [("r", "a"), ("r", "b"), ("r", 3), ("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    hierarchy = LatentHierarchy(edges, range(4))
    masking = HierarchicalMasking(hierarchy, level=1, mask_ratio=0.5, patch_size=16)
    mask = masking(IMAGES).mask
    seen = {tuple(row.nonzero().flatten().tolist()) for row in mask}
    assert (0, 1) in seen
    assert (1, 2) in seen
    # 0 and 2 are removed together only if one of their latents removes 1 as well.
    assert (0, 2) not in seen
    assert nx.descendants(hierarchy.graph, "a") == {0, 1}


def test_pickle_and_repr() -> None:
    masking = HierarchicalMasking(TREE, patch_size=2)
    twin = pickle.loads(pickle.dumps(masking))
    masks = [m(IMAGES, generator=torch.Generator().manual_seed(0)).mask for m in (masking, twin)]
    assert torch.equal(*masks)
    assert "level=2" in repr(masking)


def test_rejects_arguments() -> None:
    with pytest.raises(TypeError, match="hierarchy must be a LatentHierarchy or the arguments"):
        HierarchicalMasking("quadtree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level must be in 0\.\.3, .*, got 4"):
        HierarchicalMasking(TREE, level=4)
    with pytest.raises(TypeError, match=r"level must be an int, got 1\.0"):
        HierarchicalMasking(TREE, level=1.0)  # type: ignore[arg-type]
    masking = HierarchicalMasking(TREE, patch_size=2)
    with pytest.raises(ValueError, match=r"one observable per masking unit, 8 x 8, got \(16, 16\)"):
        masking(IMAGES[:, :, :16, :16])
    with pytest.raises(ValueError, match=r"one observable per masking unit, 8 x 32"):
        masking.layout(16, 64)[:2]


def test_compiles_as_a_whole() -> None:
    masking = HierarchicalMasking({"grid": (8, 8)}, level=2, patch_size=8)
    images, noise = torch.rand(2, 3, 64, 64), torch.rand(2, 64)

    def draw() -> torch.Tensor:
        torch.manual_seed(0)
        return masking.scores(images, (8, 8), 16, noise, None)

    scores = torch.compile(masking.scores, backend="eager", fullgraph=True)
    expected = draw()
    torch.manual_seed(0)
    assert torch.equal(scores(images, (8, 8), 16, noise, None), expected)
