"""Masks kept from a pipeline, against masks analysed at once."""

import math

import pytest
import torch

pytest.importorskip("networkx", reason="networkx is not installed")

from mim_plugins.analysis import LatentHierarchy, mask_abstraction
from mim_plugins.analysis.observed_masks import ObservedMasks
from mim_plugins.masking import RandomMasking


def draw(number: int, ratio: float = 0.75, unit: int = 16) -> torch.Tensor:
    masking = RandomMasking(mask_ratio=ratio, patch_size=16, mask_unit=unit)
    generator = torch.Generator().manual_seed(number)
    return masking(torch.zeros(number, 1, 128, 128), generator=generator).mask.view(number, 8, 8)


def test_batches_are_pooled_up_to_the_limit() -> None:
    observed = ObservedMasks(num_masks=10)
    batches = [draw(4), draw(3), draw(5)]
    for index, batch in enumerate(batches):
        assert not observed.is_full
        observed.add(batch if index else batch.long())
    assert observed.is_full
    report = observed.report()
    kept = torch.cat(batches)[:10]
    hierarchy = LatentHierarchy.quadtree((8, 8))
    expected = mask_abstraction(hierarchy, kept.flatten(1))
    assert report["masks"] == 10
    assert report["mask_ratio"] == 0.75
    for name in ("height", "lowest", "highest", "size"):
        assert report[name] == pytest.approx(getattr(expected, name).mean().item())
    assert [report[f"located_{h}"] for h in (1, 2, 3)] == pytest.approx(
        expected.located.mean(dim=0).tolist()
    )
    assert observed.report() == {}  # forgotten
    assert not observed.is_full


def test_larger_units_are_seen_to_locate_higher_latents() -> None:
    heights = []
    for unit in (16, 32, 64):
        observed = ObservedMasks()
        observed.add(draw(64, unit=unit))
        heights.append(observed.report()["height"])
    assert heights == sorted(heights)
    assert heights[1:] == [2.0, 3.0]


def test_masks_that_locate_nothing() -> None:
    observed = ObservedMasks()
    observed.add(torch.zeros(2, 4, 4))
    report = observed.report()
    assert report["size"] == 0
    assert math.isnan(report["height"])


def test_masks_of_another_grid_wait_for_the_next_report() -> None:
    observed = ObservedMasks()
    observed.add(torch.zeros(1, 4, 4))
    observed.add(torch.ones(3, 2, 6))
    assert observed.report()["masks"] == 1
    observed.add(torch.ones(3, 2, 6))
    report = observed.report()
    assert (report["masks"], report["mask_ratio"]) == (3, 1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_masks"):
        ObservedMasks(num_masks=0)
    with pytest.raises(TypeError, match="num_masks"):
        ObservedMasks(num_masks=1.5)
    with pytest.raises(ValueError, match="branching"):
        ObservedMasks(branching=1)
    with pytest.raises(TypeError, match="hierarchy"):
        ObservedMasks(hierarchy="tree")
    observed = ObservedMasks()
    with pytest.raises(ValueError, match="rows, columns"):
        observed.add(torch.zeros(1, 16))
