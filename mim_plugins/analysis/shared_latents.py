"""Which latent variables does a mask locate? Theorem 1 on a given hierarchy.

Kong et al., "Understanding Masked Autoencoders via Hierarchical Latent Variable Models",
CVPR 2023. Its appendix with algorithms 1 and 2 is not public as far as we know; Theorem 1
determines their result. The proof is in docs/hierarchical.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..masking.hierarchy import LatentHierarchy


class SharedLatents(NamedTuple):
    """Result of :func:`shared_latents`. L latents, V = L + N nodes in ``hierarchy.nodes``."""

    c: Tensor
    """``(..., L)`` bool: the minimal set of latents that the two sides share."""
    s_m: Tensor
    """``(..., V)`` bool: the nodes whose noise makes up the masked side's own information."""
    s_mc: Tensor
    """``(..., V)`` bool: the same for the visible side (one choice; it is not unique)."""
    shared: Tensor
    """``(..., L)`` bool: A, the common ancestors; what c determines and is determined by."""


@torch.no_grad()
def shared_latents(hierarchy: LatentHierarchy, mask: Tensor) -> SharedLatents:
    """Locate the information that masked and visible observables share (Theorem 1).

    With A the latents that have both masked and visible descendants, c is the set of the
    lowest elements of A, those with no child in A. s_m is the noise of all that lies above
    the masked observables, themselves included, outside A; s_mc likewise. c is contained
    in every set of latents that satisfies the theorem's first two conditions. c is the
    same for a mask and its complement. If all or nothing is masked, nothing is shared and
    c is empty.

    Time and memory are linear in edges times masks.

    Args:
        hierarchy: L latents above N observables.
        mask: ``(..., N)`` bool or 0 and 1 of any dtype; True or 1 = masked.

    Raises:
        TypeError: If ``hierarchy`` is no :class:`LatentHierarchy` or ``mask`` no tensor.
        ValueError: If ``mask`` has another length or values other than 0 and 1.

    Example:
        >>> edges = [("object", "part"), ("part", 0), ("part", 1), ("object", 2)]
        >>> hierarchy = LatentHierarchy(edges, observables=[0, 1, 2])
        >>> found = shared_latents(hierarchy, torch.tensor([[True, False, False],
        ...                                                 [True, True, False]]))
        >>> [hierarchy.select(row) for row in found.c]
        [('part',), ('object',)]
    """
    if not isinstance(hierarchy, LatentHierarchy):
        raise TypeError(f"hierarchy must be a LatentHierarchy, got {hierarchy!r}")
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"mask must be a torch.Tensor (of a PatchMask its .mask), got {type(mask).__name__}"
        )
    num = len(hierarchy.observables)
    if mask.ndim == 0 or mask.shape[-1] != num:
        raise ValueError(
            f"mask must have shape (..., {num}), one entry per observable, got {tuple(mask.shape)}"
        )
    masked = mask != 0
    if mask.dtype != torch.bool and not torch.equal(masked.to(mask.dtype), mask):
        other = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"mask must contain only 0 (visible) and 1 (masked), got {other}")
    above_masked, above_visible = hierarchy.ancestors(torch.stack([masked, ~masked]))
    shared = above_masked & above_visible
    return SharedLatents(
        c=hierarchy.lowest(shared),
        s_m=torch.cat([above_masked & ~shared, masked], dim=-1),
        s_mc=torch.cat([above_visible & ~shared, ~masked], dim=-1),
        shared=shared,
    )
