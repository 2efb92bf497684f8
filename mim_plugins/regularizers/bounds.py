"""Bounds on mutual information, in nats: InfoNCE from below, CLUB from above."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import check_positive
from .._tensor import check_shape
from .gather import gather_rows, sum_over_ranks


def infonce(
    queries: Tensor, keys: Tensor, *, temperature: float = 0.1, gather_distributed: bool = True
) -> Tensor:
    """Lower bound ``log n - CE`` on the mutual information of queries and keys, in nats.

    Van den Oord et al., "Representation Learning with Contrastive Predictive Coding",
    arXiv 1807.03748, Eqs. 4-5: CE is the cross-entropy of finding a query's own key among
    the keys of all n images, with the cosine similarity over ``temperature`` as the critic.
    Whatever the critic, the expectation is at most the mutual information if the images are
    independent. It is at most ``log n`` too, so one image alone gives 0.

    Args:
        queries: ``(..., n * r, D)`` floating; r rows per image, those of an image adjacent.
        keys: ``(..., n, D)``, one row per image. Leading dimensions broadcast, so that
            ``(M, 1, n, D)`` with ``(1, M, n, D)`` compares every mask with every other.
        temperature: Of the softmax. Default: 0.1.
        gather_distributed: Take the keys of all ranks, which must have equally many; every
            rank must call this. The result is the mean over the own queries, its mean over
            the ranks that of the global batch. Default: True, without effect in one process.

    Returns:
        ``(...)`` float32, or float64 for float64 input. Zero rows are allowed.

    Raises:
        ValueError: If ``temperature`` is not positive or the shapes do not fit.

    Example:
        >>> infonce(torch.eye(4), torch.eye(4), temperature=0.01)  # log 4: all are found
        tensor(1.3863)
    """
    check_positive("temperature", temperature)
    if min(queries.ndim, keys.ndim) < 2 or 0 in (*queries.shape, *keys.shape):
        raise ValueError(
            "queries and keys must have shapes (..., n * r, D) and (..., n, D), n >= 1, got "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    rows, images = queries.shape[-2], keys.shape[-2]
    if rows % images or queries.shape[-1] != keys.shape[-1]:
        raise ValueError(
            "queries must have a multiple of the keys' rows and equal dimension, got "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(_widen(queries), dim=-1)
        keys = F.normalize(_widen(keys), dim=-1)
        keys, start = gather_rows(keys) if gather_distributed else (keys, 0)
        own = torch.arange(start, start + images, device=keys.device)
        logits = queries @ keys.mT / temperature
        own = own.repeat_interleave(rows // images)[:, None].expand(*logits.shape[:-1], 1)
        found = logits.gather(-1, own)[..., 0] - logits.logsumexp(dim=-1)
        return found.mean(dim=-1) + math.log(keys.shape[-2])


def gaussian_log_likelihood(latents: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """``log N(latents; mean, diag(exp(log_variance)))`` in nats: ``(..., D)`` to ``(...)``."""
    square = (latents - mean).square() * torch.exp(-log_variance)
    return -0.5 * (square + log_variance + math.log(2 * math.pi)).sum(dim=-1)


def club(
    latents: Tensor, mean: Tensor, log_variance: Tensor, *, gather_distributed: bool = True
) -> Tensor:
    """Upper bound on the mutual information of latents z and inputs x, in nats.

    Cheng et al., "CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information", ICML
    2020, Eq. 8 with the variational network of section 3.2::

        E_{p(x, z)} [log q(z | x)] - E_{p(x) p(z)} [log q(z | x)],

    here with ``q(z | x)`` Gaussian of diagonal covariance. The second mean is over all
    pairs of an input with a latent of *another* image. It needs no pairs: the difference of
    two Gaussian log-likelihoods is linear in z and z^2, so that the first two moments of
    the latents give it exactly, in O(n D).

    It is an upper bound if q is the true conditional, or closer to the joint distribution
    than to the product of the marginals (theorem 3.2 there); with an untrained q it is
    neither, and may be negative.

    Args:
        latents: ``(G, n, D)`` floating: G latents of each of n images (masks, tokens).
        mean, log_variance: q's, ``(G, n, D)``: of the input that each latent belongs to.
        gather_distributed: Take the moments over all ranks; every rank must call this and
            receives the same value. Default: True, without effect in one process.

    Returns:
        Scalar, float32, or float64 for float64 input. One image alone gives 0.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("latents", latents, "G >= 1", "n >= 1", "D >= 1")
    check_shape("mean", mean, *latents.shape)
    check_shape("log_variance", log_variance, *latents.shape)

    def total(*values: Tensor) -> Tensor:
        stacked = torch.stack(values)
        return sum_over_ranks(stacked) if gather_distributed else stacked

    with torch.autocast(latents.device.type, enabled=False):
        z, mu, log_variance = _widen(latents), _widen(mean), _widen(log_variance)
        groups, images, dim = z.shape
        count = z.new_full((dim,), images)
        # A common shift of z and mu changes nothing but the rounding.
        shift, count = total(z.detach().mean(dim=0).sum(dim=0), count)
        z, mu = z - shift / count, mu - shift / count
        own = torch.stack([z, z.square()]).sum(dim=1)  # (2, n, D): moments of the own image
        others = (count - 1).clamp(min=1) * groups
        first, second = (total(*own.sum(dim=1))[:, None] - own) / others
        gap = (second - z.square()) / 2 + mu * (z - first)
        gap = (gap * torch.exp(-log_variance)).sum() / groups
        gap, _ = total(gap, gap) / count[0]
        return torch.where(count[0] > 1, gap, 0.0)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
