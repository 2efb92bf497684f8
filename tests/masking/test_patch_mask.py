import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from mim_plugins.masking import PatchMask


def test_fields_are_consistent() -> None:
    scores = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    mask = PatchMask.from_scores(scores, num_keep=4)
    for b in range(3):
        order = sorted(range(10), key=lambda i: scores[b, i].item())
        assert mask.ids_keep[b].tolist() == order[:4]
        assert mask.ids_mask[b].tolist() == order[4:]
        assert [order.index(i) for i in range(10)] == mask.ids_restore[b].tolist()
        assert mask.mask[b].tolist() == [order.index(i) >= 4 for i in range(10)]
    assert mask.mask.dtype == torch.bool
    assert mask.ids_keep.dtype == mask.ids_restore.dtype == torch.long


def test_from_mask_keeps_the_mask() -> None:
    removed = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 1]]])
    mask = PatchMask.from_mask(removed)
    assert torch.equal(mask.mask, removed.flatten(1).bool())
    assert mask.ids_keep.tolist() == [[1, 2], [0, 1]]


def test_from_mask_rejects_unequal_counts() -> None:
    with pytest.raises(ValueError, match="same number of patches.*between 1 and 2"):
        PatchMask.from_mask(torch.tensor([[1, 0, 0], [1, 1, 0]]))


def test_rows_devices_and_collation() -> None:
    mask = PatchMask(torch.tensor([[0, 1, 2, 3], [3, 1, 2, 0], [2, 3, 1, 0]]), 1)
    assert len(mask) == 3
    assert repr(mask) == "PatchMask(3 images, 1 of 4 patches visible, cpu)"
    for rows, expected in ((1, [1]), (slice(1, None), [1, 2]), (torch.tensor([2, 0]), [2, 0])):
        assert torch.equal(mask[rows].ids_shuffle, mask.ids_shuffle[expected])
        assert mask[rows].num_keep == 1
    assert mask.to("meta").ids_shuffle.is_meta
    samples = [{"mask": mask[i], "number": i} for i in range(3)]
    assert torch.equal(default_collate(samples)["mask"].ids_shuffle, mask.ids_shuffle)
    loaded = next(iter(DataLoader(samples, batch_size=2)))["mask"]
    assert torch.equal(loaded.ids_shuffle, mask.ids_shuffle[:2])
    with pytest.raises(ValueError, match="masks must keep equally many"):
        PatchMask.cat([mask, PatchMask(mask.ids_shuffle, 2)])
    assert PatchMask.from_mask(torch.zeros(0, 4)).mask.shape == (0, 4)


@pytest.mark.parametrize(
    ("ids_shuffle", "num_keep", "error", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.long), 2, ValueError,
         r"must be a permutation of 0..3 per image, got \[0, 0, 0, 0\] in row 0"),
        (torch.tensor([[0, 1], [2, 1]]), 1, ValueError, r"got \[2, 1\] in row 1"),
        (torch.arange(4), 2, ValueError, r"ids_shuffle must have shape \(B, N\), got \(4,\)"),
        (torch.rand(1, 4), 2, TypeError, "ids_shuffle must be a long tensor, got torch.float32"),
        ([[0, 1]], 1, TypeError, "ids_shuffle must be a long tensor, got list"),
        (torch.arange(4)[None], 9, ValueError, r"num_keep must be in 0..N=4, got 9"),
        (torch.arange(4)[None], -1, ValueError, "num_keep must be at least 0, got -1"),
        (torch.arange(4)[None], 1.0, TypeError, "num_keep must be an int, got 1.0"),
    ],
)  # fmt: skip
def test_bad_permutations(
    ids_shuffle: torch.Tensor, num_keep: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PatchMask(ids_shuffle, num_keep)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.full((2, 4), 0.5), ValueError, "mask must hold 0 and 1"),
        (torch.full((2, 4), torch.nan), ValueError, "mask must hold 0 and 1"),
        (torch.ones(4), ValueError, r"mask must have shape \(B, N\) or \(B, H, W\), got"),
        ([[True]], TypeError, "mask must be a torch.Tensor, got list"),
    ],
)
def test_bad_masks(mask: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PatchMask.from_mask(mask)
