"""One feature per image of what an encoder returns."""

from __future__ import annotations

import torch
from torch import Tensor

from ._check import check_choice, check_int

TOKENS = ("auto", "cls", "mean")


def pool(
    output: Tensor, token: str = "auto", num_prefix_tokens: int = 1, mask: Tensor | None = None
) -> Tensor:
    """One feature per image of what an encoder returns, in float32 and outside autocast.

    Args:
        output: ``(B, D)``, one feature per image already; ``(B, D, H, W)``, averaged over
            positions; or ``(B, P + K, D)``, P prefix tokens, [CLS] first, then K patches.
        token: Of tokens take the first (``"cls"``), the mean of the patches (``"mean"``), or
            the first if there are prefix tokens and else the mean (``"auto"``).
        num_prefix_tokens: P, of tokens that are no patches. Default: 1, a [CLS].
        mask: ``(B, K)`` or ``(B, H, W)``, True or 1 = removed: left out of the mean.
            Default: all patches count.

    Returns:
        ``(B, D)`` float32, or float64 for float64 input. The mean of an image without visible
        patch is zero.

    Raises:
        TypeError: If ``num_prefix_tokens`` is no int.
        ValueError: If an argument is out of range, or shapes do not fit.
    """
    check_choice("token", token, TOKENS)
    check_int("num_prefix_tokens", num_prefix_tokens, 0)
    if output.ndim == 3 and token == "cls" and not num_prefix_tokens:
        raise ValueError(
            "token='cls' needs an encoder with [CLS], got num_prefix_tokens=0; use token='mean'"
        )
    # Sums of many float16 numbers overflow, or lose precision.
    with torch.autocast(output.device.type, enabled=False):
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if output.ndim == 2:
            return output
        if output.ndim == 4:
            patches = output.flatten(2).transpose(1, 2)
        elif output.ndim == 3 and output.shape[1] > (num_prefix_tokens if token == "mean" else 0):
            if token == "cls" or (token == "auto" and num_prefix_tokens):
                return output[:, 0]
            patches = output[:, num_prefix_tokens:]
        else:
            raise ValueError(
                f"features must have shape (B, D), (B, {num_prefix_tokens} + K, D) or "
                f"(B, D, H, W), got {tuple(output.shape)}"
            )
        if mask is None:
            return patches.mean(dim=1)
        removed = mask.flatten(1).bool()
        if removed.shape != patches.shape[:2]:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, but there are {patches.shape[1]} patch "
                f"tokens in each of {len(patches)} images; leave mask out if the encoder sees "
                "visible patches only"
            )
        # Not by a product with zero: a removed patch may be infinite.
        total = patches.masked_fill(removed[:, :, None], 0.0).sum(dim=1)
        return total / (~removed).sum(dim=1, keepdim=True).clamp(min=1)
