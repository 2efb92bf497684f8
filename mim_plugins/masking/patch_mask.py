"""The result of every masking: which patches stay visible, which are removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PatchMask:
    """Visible and removed patches of a batch, consistent by construction.

    Everything derives from one permutation per image, as in MAE's ``ids_shuffle``: its
    first ``num_keep`` entries stay visible, the rest are removed. Patches are numbered
    row-major.

    Attributes:
        ids_shuffle: ``(B, N)`` long, a permutation of ``0..N-1`` per image, kept first.
        num_keep: K, the number of visible patches, equal for all images.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1, 0.4, 0.6]])
        >>> PatchMask.from_scores(scores, num_keep=2).mask
        tensor([[ True, False, False,  True]])
    """

    ids_shuffle: Tensor
    num_keep: int

    @classmethod
    def from_scores(cls, scores: Tensor, num_keep: int) -> PatchMask:
        """Keep the ``num_keep`` patches with the smallest ``scores`` ``(B, N)``."""
        return cls(torch.argsort(scores, dim=1), num_keep)

    @classmethod
    def from_mask(cls, mask: Tensor) -> PatchMask:
        """Build from a ``(B, N)`` or ``(B, H, W)`` mask, True or 1 = removed.

        Raises:
            ValueError: If the images do not all remove the same number of patches.
        """
        removed = mask.flatten(1).bool()
        counts = removed.sum(dim=1)
        if counts.unique().numel() > 1:
            raise ValueError(
                "mask must remove the same number of patches from every image, got "
                f"between {int(counts.min())} and {int(counts.max())}"
            )
        ids_shuffle = torch.argsort(removed.to(torch.uint8), dim=1, stable=True)
        return cls(ids_shuffle, removed.shape[1] - int(counts[0]))

    @property
    def ids_keep(self) -> Tensor:
        """``(B, K)`` long: the visible patches."""
        return self.ids_shuffle[:, : self.num_keep]

    @property
    def ids_mask(self) -> Tensor:
        """``(B, N - K)`` long: the removed patches."""
        return self.ids_shuffle[:, self.num_keep :]

    @property
    def ids_restore(self) -> Tensor:
        """``(B, N)`` long: the inverse of ``ids_shuffle``."""
        ranks = torch.arange(self.ids_shuffle.shape[1], device=self.ids_shuffle.device)
        ranks = ranks.expand_as(self.ids_shuffle)
        return torch.empty_like(self.ids_shuffle).scatter_(1, self.ids_shuffle, ranks)

    @property
    def mask(self) -> Tensor:
        """``(B, N)`` bool: True = removed."""
        return self.ids_restore >= self.num_keep
