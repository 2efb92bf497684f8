"""Spectral uniformity: keep the features of different images apart (U-MAE, Eq. 11)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._check import check_choice, check_int, check_weight
from .gather import check_gather_distributed, sum_over_ranks, world_size

TOKENS = ("cls", "mean")


def uniformity(features: Tensor, gather_distributed: bool = False) -> Tensor:
    """Mean squared cosine similarity of all pairs of features, L_unif of U-MAE.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, Eq. 11, on l2-normalised features as in the official code.
    The mean is over all n^2 ordered pairs, pairs of an image with itself included, also as
    in the official code. Those have the constant value 1 and no gradient, so leaving them
    out would only rescale: ``L_without = (n * L - 1) / (n - 1)``.

    With F the (n, D) normalised features, the sum over pairs is ``||F F^T||^2``, which
    equals ``||F^T F||^2`` (Frobenius). The smaller of the two matrices is computed, always
    in float32 or wider, outside autocast: float16 norms overflow. Over several ranks the
    (D, D) matrix is summed, one message of D^2 + 1 numbers each way; the ranks' batches may
    differ in size.

    Args:
        features: ``(n, D)`` floating, n >= 1, one row per image.
        gather_distributed: Take the pairs from all ranks. Then every rank must call this.
            Without effect in a single process. Default: False.

    Returns:
        Scalar between ``1 / min(n, D)`` (orthonormal features) and 1 (all on one line),
        float32, or float64 for float64 features. A feature of zero norm has similarity 0
        with everything, itself included, and gets no gradient. One image alone gives 1.

    Raises:
        TypeError: If ``features`` is not floating.
        ValueError: If ``features`` has another shape.

    Example:
        >>> uniformity(torch.eye(4))
        tensor(0.2500)
    """
    if not features.is_floating_point():
        raise TypeError(f"features must be floating, got {features.dtype}")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must have shape (n >= 1, D), got {tuple(features.shape)}")
    num, dim = features.shape
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        unit = F.normalize(features, dim=1)
        if gather_distributed and world_size() > 1:
            moment = (unit.T @ unit).flatten()
            summed = sum_over_ranks(torch.cat([moment, moment.new_full((1,), num)]))
            return summed[:-1].square().sum() / summed[-1].square()
        products = unit @ unit.T if num < dim else unit.T @ unit
        return products.square().sum() / num**2


def global_feature(
    tokens: Tensor, token: str = "cls", num_prefix_tokens: int = 1, mask: Tensor | None = None
) -> Tensor:
    """One feature per image from an encoder's output tokens.

    Args:
        tokens: ``(B, P + K, D)``: P prefix tokens, [CLS] first, then K patch tokens; or
            ``(B, D)``, already one feature per image, which is returned unchanged.
        token: ``"cls"`` takes the first token, ``"mean"`` the mean of the visible patch
            tokens.
        num_prefix_tokens: P, 0 for an encoder without [CLS]. Default: 1.
        mask: ``(B, K)`` or ``(B, H, W)``, True or 1 = removed, for encoders that also see
            the removed patches (SimMIM). The mean then leaves these out. Default: all K
            tokens are visible (MAE).

    Returns:
        ``(B, D)``. The mean of an image without visible patch is zero.

    Raises:
        ValueError: If an argument is out of range or shapes do not fit.
    """
    _check_token(token, num_prefix_tokens)
    if tokens.ndim == 2:
        return tokens
    if tokens.ndim != 3 or tokens.shape[1] <= (num_prefix_tokens if token == "mean" else 0):
        raise ValueError(
            f"tokens must have shape (B, D) or (B, {num_prefix_tokens} + K, D), "
            f"got {tuple(tokens.shape)}"
        )
    if token == "cls":
        return tokens[:, 0]
    patches = tokens[:, num_prefix_tokens:]
    # Sums of many float16 numbers lose precision.
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    if mask is None:
        return patches.mean(dim=1)
    if mask.flatten(1).shape != patches.shape[:2]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, but there are {patches.shape[1]} patch tokens "
            f"in each of {len(patches)} images; leave mask out if the encoder sees visible "
            "patches only"
        )
    visible = (~mask.flatten(1).bool()).to(patches.dtype)
    total = torch.einsum("bk,bkd->bd", visible, patches)
    return total / visible.sum(dim=1, keepdim=True).clamp(min=1)


def _check_token(token: str, num_prefix_tokens: int) -> None:
    check_choice("token", token, TOKENS)
    if check_int("num_prefix_tokens", num_prefix_tokens, 0) == 0 and token == "cls":
        raise ValueError(
            "token='cls' needs an encoder with [CLS], got num_prefix_tokens=0; use token='mean'"
        )


class UniformityLoss(nn.Module):
    """The term that U-MAE adds to a reconstruction loss: ``weight`` times Eq. 11.

    See :func:`uniformity` for the formula and :func:`global_feature` for the feature taken.

    Args:
        weight: λ of Eq. 10, finite and at least 0. Default: 1, that is Eq. 11 itself. The
            sources name values from 1e-5 to 1e-2 (docs/u-mae.md).
        token: ``"cls"`` or ``"mean"`` (of the visible patch tokens). Default: ``"cls"``.
        num_prefix_tokens: Tokens before the patch tokens. Default: 1, a [CLS].
        gather_distributed: Take the pairs from all ranks, with gradient. Default: False.

    Raises:
        TypeError: If ``weight`` is no number.
        ValueError: If an argument is out of range, or ``gather_distributed`` is set and
            torch lacks ``torch.distributed``.

    Example:
        >>> loss_fn = UniformityLoss(weight=1e-2)
        >>> latent = torch.randn(8, 1 + 49, 192, requires_grad=True)  # of a MAE encoder
        >>> loss_fn(latent).backward()
    """

    def __init__(
        self,
        weight: float = 1.0,
        token: str = "cls",
        num_prefix_tokens: int = 1,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.weight = check_weight("weight", weight)
        _check_token(token, num_prefix_tokens)
        self.token = token
        self.num_prefix_tokens = num_prefix_tokens
        self.gather_distributed = check_gather_distributed(gather_distributed)

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, num_masks: int = 1, **step: object
    ) -> Tensor:
        """The weighted term of a batch.

        Args:
            tokens: ``(M * B, P + K, D)``, or features ``(M * B, D)``.
            mask: ``(M * B, N)`` or ``(M * B, H, W)``, True or 1 = removed, for encoders that
                see the removed patches too (K = N); see :func:`global_feature`. Ignored if
                K < N: the tokens are the visible ones.
            num_masks: M, masks per image, in the order of ``images.repeat(M, 1, 1, 1)``. The
                term is the mean over the masks: pairs are of different images. Default: 1.
            **step: Whatever else an adapter passes to every regularizer. Not used.

        Returns:
            Scalar.
        """
        if mask is not None and tokens.ndim == 3:
            visible_only = tokens.shape[1] - self.num_prefix_tokens < mask[0].numel()
            mask = None if visible_only else mask
        features = global_feature(tokens, self.token, self.num_prefix_tokens, mask)
        parts = [uniformity(f, self.gather_distributed) for f in features.chunk(num_masks)]
        return self.weight * torch.stack(parts).mean()

    def extra_repr(self) -> str:
        return (
            f"weight={self.weight}, token={self.token!r}, "
            f"num_prefix_tokens={self.num_prefix_tokens}, "
            f"gather_distributed={self.gather_distributed}"
        )
