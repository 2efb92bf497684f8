"""The result of every masking: which patches stay visible, which are removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from .._check import check_int
from .._tensor import check_shape, is_traced


@dataclass(frozen=True, eq=False, repr=False)
class PatchMask:
    """Visible and removed patches of a batch, consistent by construction.

    Everything derives from one permutation per image, as in MAE's ``ids_shuffle``: its
    first ``num_keep`` entries stay visible, the rest are removed. Patches are numbered
    row-major. ``len(mask)`` is B, ``mask[i]`` some of the rows, always a PatchMask;
    ``default_collate`` puts those of samples together as :meth:`cat` does.

    Args:
        ids_shuffle: ``(B, N)`` long, a permutation of ``0..N-1`` per image, kept first.
        num_keep: K, the number of visible patches, equal for all images, in 0..N.
        check: Whether to look at the numbers of ``ids_shuffle``; on CUDA that waits for the
            device. Default: True.

    Raises:
        TypeError: If ``ids_shuffle`` is no long tensor or ``num_keep`` no int.
        ValueError: If it is no permutation, or ``num_keep`` out of range.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1, 0.4, 0.6]])
        >>> PatchMask.from_scores(scores, num_keep=2).mask
        tensor([[ True, False, False,  True]])
    """

    ids_shuffle: Tensor
    num_keep: int
    check: InitVar[bool] = field(default=True, kw_only=True)

    def __post_init__(self, check: bool) -> None:
        ids = self.ids_shuffle
        if not isinstance(ids, Tensor) or ids.dtype != torch.long:
            kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"ids_shuffle must be a long tensor, got {kind}")
        check_shape("ids_shuffle", ids, "B", "N")
        if check_int("num_keep", self.num_keep, 0) > ids.shape[1]:
            raise ValueError(f"num_keep must be in 0..N={ids.shape[1]}, got {self.num_keep}")
        if check and not is_traced(ids):
            every = torch.arange(ids.shape[1], device=ids.device)
            wrong = (ids.sort(dim=1).values != every).any(dim=1)
            if wrong.any():
                row = int(wrong.int().argmax())
                raise ValueError(
                    f"ids_shuffle must be a permutation of 0..{ids.shape[1] - 1} per image, got "
                    f"{ids[row].tolist()} in row {row}"
                )

    @classmethod
    def from_scores(cls, scores: Tensor, num_keep: int) -> PatchMask:
        """Keep the ``num_keep`` patches with the smallest ``scores`` ``(B, N)``."""
        return cls(torch.argsort(scores, dim=1), num_keep, check=False)

    @classmethod
    def from_mask(cls, mask: Tensor) -> PatchMask:
        """Build from a ``(B, N)`` or ``(B, H, W)`` mask, True or 1 = removed.

        Raises:
            TypeError: If ``mask`` is no tensor.
            ValueError: If it has another shape or other values, or the images do not all
                remove the same number of patches.
        """
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
        if mask.ndim not in (2, 3):
            raise ValueError(f"mask must have shape (B, N) or (B, H, W), got {tuple(mask.shape)}")
        removed = mask.flatten(1) == 1
        if not (removed | (mask.flatten(1) == 0)).all():
            raise ValueError(f"mask must hold 0 and 1 or False and True only, got {mask}")
        counts = removed.sum(dim=1)
        if counts.unique().numel() > 1:
            raise ValueError(
                "mask must remove the same number of patches from every image, got "
                f"between {int(counts.min())} and {int(counts.max())}"
            )
        ids_shuffle = torch.argsort(removed.to(torch.uint8), dim=1, stable=True)
        num_mask = int(counts[0]) if len(counts) else 0
        return cls(ids_shuffle, removed.shape[1] - num_mask, check=False)

    @classmethod
    def cat(cls, masks: Sequence[PatchMask]) -> PatchMask:
        """All rows of several masks; ValueError unless they keep equally many patches."""
        kept = {(mask.num_keep, mask.ids_shuffle.shape[1]) for mask in masks}
        if len(kept) != 1:
            raise ValueError(f"masks must keep equally many of equally many patches, got {kept}")
        ids_shuffle = torch.cat([mask.ids_shuffle for mask in masks])
        return cls(ids_shuffle, masks[0].num_keep, check=False)

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

    def to(self, *args: Any, **kwargs: Any) -> PatchMask:
        """On another device, as ``Tensor.to``."""
        return PatchMask(self.ids_shuffle.to(*args, **kwargs), self.num_keep, check=False)

    def __len__(self) -> int:
        return len(self.ids_shuffle)

    def __getitem__(self, rows: int | slice | Tensor | Sequence[int]) -> PatchMask:
        ids = self.ids_shuffle[rows]
        return PatchMask(ids[None] if ids.ndim == 1 else ids, self.num_keep, check=False)

    def __repr__(self) -> str:
        batch, num = self.ids_shuffle.shape
        device = self.ids_shuffle.device
        return f"PatchMask({batch} images, {self.num_keep} of {num} patches visible, {device})"


def _collate(masks: Sequence[PatchMask], **kwargs: Any) -> PatchMask:
    return PatchMask.cat(masks)


default_collate_fn_map[PatchMask] = _collate
