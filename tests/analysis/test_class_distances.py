import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mim_plugins.analysis import ClassDistances, class_distances, plot_class_distances
from mim_plugins.masking import GridMasking, PatchMask, RandomMasking

LABELS = torch.tensor([0, 1, 0, 2, 1])


def random_images(num: int = 5, side: int = 8) -> Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(0))


def brute_force(images: Tensor, masks: Tensor, patch: int, reduction: str) -> dict:
    """Distance of every two images, patch by patch; ``masks`` ``(n, rows, cols)``."""

    def visible(i: int) -> list[Tensor]:
        return [
            images[i, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].double()
            for r in range(masks.shape[1])
            for c in range(masks.shape[2])
            if not masks[i, r, c]
        ]

    distances = {}
    for i, j in itertools.combinations(range(len(images)), 2):
        pairs = [
            math.sqrt(((a - b) ** 2).sum().item())
            for a, b in itertools.product(visible(i), visible(j))
        ]
        distances[i, j] = max(pairs) if reduction == "max" else sum(pairs) / len(pairs)
    return distances


def means(distances: dict, labels: Tensor) -> tuple[float, float]:
    intra = [d for (i, j), d in distances.items() if labels[i] == labels[j]]
    inter = [d for (i, j), d in distances.items() if labels[i] != labels[j]]
    return sum(intra) / len(intra), sum(inter) / len(inter)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("block", [1, 2, 16])
def test_equals_brute_force(reduction: str, block: int) -> None:
    images, ratios = random_images(), (0.0, 0.5, 0.75)
    found = class_distances(
        images,
        LABELS,
        ratios,
        2,
        reduction,
        generator=torch.Generator().manual_seed(1),
        block=block,
    )
    generator = torch.Generator().manual_seed(1)
    for i, ratio in enumerate(ratios):
        mask = torch.zeros(5, 4, 4)
        if ratio:
            mask = RandomMasking(mask_ratio=ratio, patch_size=2)(
                images, generator=generator
            ).mask.view(5, 4, 4)
        intra, inter = means(brute_force(images, mask, 2, reduction), LABELS)
        assert found.intra[i].item() == pytest.approx(intra)
        assert found.inter[i].item() == pytest.approx(inter)
        assert found.relative[i].item() == pytest.approx(intra / inter)
    assert found.mask_ratios.tolist() == list(ratios)


def test_constant_images() -> None:
    """Patches of S values, c and c' all over: distance |c - c'| sqrt(S) at every ratio."""
    levels = torch.tensor([0.0, 0.2, 1.0, 1.2])
    images = levels.view(4, 1, 1, 1).expand(4, 3, 32, 32)
    labels = torch.tensor([0, 0, 1, 1])
    for reduction in ("max", "mean"):
        found = class_distances(images, labels, (0.0, 0.5), 16, reduction)
        root = math.sqrt(3 * 16 * 16)
        assert found.intra.tolist() == pytest.approx([0.2 * root] * 2)
        assert found.inter.tolist() == pytest.approx([root] * 2)


class AllMasks:
    """Stands for RandomMasking: the ``number``-th combination of the images' masks."""

    def __init__(self, masks: list[tuple[int, ...]]) -> None:
        self.masks = masks

    def __call__(self, mask_ratio: float, patch_size: int) -> Callable[..., PatchMask]:
        removed = torch.zeros(len(self.masks), 4)
        for row, mask in zip(removed, self.masks, strict=True):
            row[list(mask)] = 1
        return lambda images, generator=None: PatchMask.from_mask(removed)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_only_the_maximum_depends_on_the_ratio_in_expectation(reduction: str) -> None:
    """All masks of three images of four patches, so expectations are exact."""
    images, labels = random_images(3, 4), torch.tensor([0, 0, 1])
    expected = class_distances(images, labels, (0.0,), 2, reduction)
    for masked in (1, 2, 3):
        masks = list(itertools.combinations(range(4), masked))
        draws = [
            class_distances(images, labels, (masked / 4,), 2, reduction, AllMasks(list(choice)))
            for choice in itertools.product(masks, repeat=3)
        ]
        intra = sum(draw.intra.item() for draw in draws) / len(draws)
        if reduction == "mean":
            assert intra == pytest.approx(expected.intra.item())
        else:
            assert intra < expected.intra.item() - 1e-3


def test_other_maskings() -> None:
    images = random_images()
    found = class_distances(
        images, LABELS, (0.75,), 2, masking=lambda **kw: GridMasking(random_shift=False, **kw)
    )
    mask = GridMasking(mask_ratio=0.75, patch_size=2, random_shift=False)(images).mask.view(5, 4, 4)
    intra, inter = means(brute_force(images, mask, 2, "max"), LABELS)
    assert (found.intra.item(), found.inter.item()) == pytest.approx((intra, inter))


def test_same_generator_same_result() -> None:
    first, second = (
        class_distances(
            random_images(), LABELS, (0.5,), 2, generator=torch.Generator().manual_seed(3)
        )
        for _ in range(2)
    )
    assert torch.equal(first.intra, second.intra)


def test_bad_arguments() -> None:
    images = random_images()
    with pytest.raises(ValueError, match="reduction must be one of.*got 'min'"):
        class_distances(images, LABELS, (0.5,), 2, "min")
    with pytest.raises(ValueError, match=r"mask_ratios must be in \[0, 1\), got 1.0"):
        class_distances(images, LABELS, (0.5, 1.0), 2)
    with pytest.raises(ValueError, match="at least one ratio"):
        class_distances(images, LABELS, (), 2)
    with pytest.raises(ValueError, match="block must be at least 1"):
        class_distances(images, LABELS, (0.5,), 2, block=0)
    with pytest.raises(ValueError, match=r"labels must have shape \(\d+,\), got \(4,\)"):
        class_distances(images, LABELS[:4], (0.5,), 2)
    with pytest.raises(ValueError, match="multiples of patch_size=3, got 8 x 8"):
        class_distances(images, LABELS, (0.5,), 3)
    with pytest.raises(ValueError, match="at least one class two images"):
        class_distances(images, torch.arange(5), (0.5,), 2)
    with pytest.raises(ValueError, match="at least two classes"):
        class_distances(images, torch.zeros(5), (0.5,), 2)


def test_plot_shows_the_numbers() -> None:
    distances = ClassDistances(
        torch.tensor([0.1, 0.5]), torch.tensor([2.0, 1.0]), torch.tensor([4.0, 3.0])
    )
    figure = plot_class_distances(distances)
    lines = [line for axis in figure.axes for line in axis.get_lines()]
    assert [list(line.get_ydata()) for line in lines] == [
        [2.0, 1.0],
        [4.0, 3.0],
        pytest.approx([0.5, 1 / 3]),
    ]
