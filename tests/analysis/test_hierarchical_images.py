"""Images of a known hierarchy: their latents are what the pixels show."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("networkx", reason="networkx is not installed")

from mim_plugins.analysis import HierarchicalImages, shared_latents, write_hierarchical_folder
from mim_plugins.analysis.hierarchical_images import _codes, _palette, render


def test_deterministic_image_by_image() -> None:
    few, many = HierarchicalImages(3, seed=5), HierarchicalImages(40, seed=5)
    for index in range(3):
        image, label = few[index]
        other, same_label = many[index]
        assert torch.equal(image, other)
        assert label == same_label == few.latents.object[index]
        assert image.shape == (3, 32, 32)
        assert image.min() >= 0
        assert image.max() <= 1
    together = many.images(torch.tensor([2, 0]))
    assert torch.equal(together, torch.stack([many[2][0], many[0][0]]))
    assert not torch.equal(few[0][0], few[1][0])
    assert torch.equal(few[-1][0], few[2][0])
    with pytest.raises(IndexError):
        few[3]


def test_seeds_share_neither_latents_nor_noise() -> None:
    first, second = (HierarchicalImages(4, noise=0.01, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.latents.part, second.latents.part)
    index = torch.arange(4)
    clean = render(first.latents)
    noise = [data.images(index, first.latents) - clean for data in (first, second)]
    assert noise[0].std().item() == pytest.approx(0.01, rel=0.05)
    correlation = np.corrcoef([n.flatten().numpy() for n in (*noise, noise[0].roll(1, 0))])
    assert np.abs(correlation - np.eye(3)).max() < 0.05
    assert torch.equal(HierarchicalImages(4, noise=0.0).images(index), clean)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_each_latent_moves_its_block_and_nothing_else(size: int) -> None:
    data = HierarchicalImages(1, image_size=size, noise=0.0)
    other = HierarchicalImages(1, image_size=size, noise=0.0, seed=1)
    base = render(data.latents, size)[0]
    blocks = {"part": 2, "texture": 4, "patch": 8}
    for level, side in blocks.items():
        for block in range(side**2):
            field = getattr(data.latents, level).clone()
            field[:, block] = getattr(other.latents, level)[:, block]
            changed = render(data.latents._replace(**{level: field}), size)[0]
            moved = (changed != base).any(dim=0).view(side, size // side, side, size // side)
            moved = moved.transpose(1, 2).flatten(2).float().mean(dim=2).flatten()
            assert moved[block] > 0.9
            assert moved.sum() == moved[block]
    object_ = (data.latents.object + 1) % 8
    moved = (render(data.latents._replace(object=object_), size)[0] != base).any(dim=0)
    assert moved.all()


def test_latents_can_be_solved_for_from_pixels() -> None:
    """Invertible: logits are linear in the latents, so least squares recovers them exactly."""
    data = HierarchicalImages(5, noise=0.0)
    pixels = data.images(torch.arange(5)).double()
    logits = torch.logit(pixels)
    zero = data.latents._replace(
        **{
            name: torch.zeros_like(getattr(data.latents, name))
            for name in ("part", "texture", "patch")
        }
    )
    colour = torch.logit(render(zero).double())
    rest = (logits - colour).mean(dim=1)  # grey: slopes, gratings, own brightness
    columns = []
    for level, count in (("part", 8), ("texture", 32), ("patch", 64)):
        for number in range(count):
            single = {
                name: torch.zeros(1, *getattr(zero, name).shape[1:]) for name in zero._fields[1:]
            }
            single[level].view(-1)[number] = 1.0
            one = zero.select(torch.tensor([0]))._replace(**single)
            blank = zero.select(torch.tensor([0]))
            columns.append(
                (torch.logit(render(one).double()) - torch.logit(render(blank).double()))[0, 0]
            )
    matrix = torch.stack([c.flatten() for c in columns], dim=1)
    assert torch.linalg.matrix_rank(matrix, atol=1e-3) == 8 + 32 + 64
    solved = torch.linalg.lstsq(matrix, rest.flatten(1).T).solution.T
    truth = torch.cat(
        [getattr(data.latents, n).flatten(1) for n in ("part", "texture", "patch")], 1
    )
    torch.testing.assert_close(solved, truth.double(), atol=1e-2, rtol=0)


def test_a_colour_tells_the_object_only_with_its_place() -> None:
    codes = _codes()
    for part in range(4):
        assert codes[:, part].sort().values.tolist() == list(range(8))  # invertible, part by part
    assert len({tuple(codes[:, part].tolist()) for part in range(4)}) == 4
    assert _palette()[codes].sum(dim=1).abs().max() == 0  # no average of colours tells it


def test_hierarchy_is_that_of_the_images() -> None:
    """A hidden cell of a visible part locates that part, a hidden part the object."""
    hierarchy = HierarchicalImages.hierarchy()
    assert hierarchy.heights.bincount().tolist() == [0, 16, 4, 1]
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :2, :2] = True
    mask[1, :4, :4] = True
    found = [hierarchy.select(row) for row in shared_latents(hierarchy, mask.flatten(1)).c]
    assert found == [((2, 0, 0),), ((3, 0, 0),)]


def test_folder(tmp_path: Path) -> None:
    from PIL import Image
    from torchvision.datasets import ImageFolder

    root = write_hierarchical_folder(tmp_path / "h", num_train=12, num_test=5, num_objects=3)
    dataset = ImageFolder(root / "train")
    assert len(dataset) == 12
    assert dataset.classes == ["object_0", "object_1", "object_2"]
    latents = json.loads((root / "test_latents.json").read_text())
    data = HierarchicalImages(5, num_objects=3, seed=1)
    assert latents["object"] == data.latents.object.tolist()
    for index in range(5):
        path = root / "test" / f"object_{latents['object'][index]}" / f"{index:06d}.png"
        image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
        torch.testing.assert_close(image / 255, data[index][0], atol=0.5 / 255 + 1e-6, rtol=0)
    before = (root / "train_latents.json").stat().st_mtime_ns
    write_hierarchical_folder(tmp_path / "h", num_train=12, num_test=5, num_objects=3)
    assert (root / "train_latents.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("num_images", 0, ValueError),
        ("num_images", 1.5, TypeError),
        ("image_size", 30, ValueError),
        ("image_size", 8, ValueError),
        ("num_objects", 9, ValueError),
        ("num_objects", 1, ValueError),
        ("noise", -0.1, ValueError),
        ("noise", "a", TypeError),
        ("seed", -1, ValueError),
    ],
)
def test_bad_arguments(argument: str, value: object, error: type) -> None:
    with pytest.raises(error, match=argument):
        HierarchicalImages(**{argument: value})
