import pytest
import torch

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
