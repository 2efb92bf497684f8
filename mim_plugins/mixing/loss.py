"""The soft distance of mixed images (MixMask, Eqs. 4-6), around any siamese criterion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .mixmask import Mix
from .state import State

Criterion = Callable[[Tensor, Tensor], Tensor]


def mixture(
    criterion: Criterion, queries: Tensor | Sequence[Tensor], key: Tensor, mix: Mix
) -> Tensor:
    """The soft distance of mixed images, λ L_up + (1 - λ) L_down (Eqs. 4 and 6).

    Mixed image i shows image i and image P(i), so L_up compares its query with key i and
    L_down with key P(i). Eq. 6 reverses the queries instead: ``queries[inverse]`` beside
    ``key``. The pairs are the same; keys are permuted here, as they mostly need no gradient.

    Args:
        criterion: ``(B, D), (B, D) -> scalar``, query and key, a mean over pairs that
            does not depend on their order.
        queries: ``(B, D)``: of ``mix.images``; or one such tensor for each of ``mix.views``.
        key: ``(B, D)``: of the unmixed images.
        mix: How the images were mixed.

    Raises:
        TypeError: If ``criterion`` returns no scalar tensor.
        ValueError: If batch sizes or the number of ``queries`` do not fit ``mix``.
    """
    queries = (queries,) if isinstance(queries, Tensor) else tuple(queries)
    if len(queries) != len(mix.views):
        raise ValueError(
            f"queries must be those of the {len(mix.views)} batches of mix.views, "
            f"got {len(queries)}"
        )
    for name, value in [("queries", query) for query in queries] + [("key", key)]:
        if len(value) != len(mix.permutation):
            raise ValueError(
                f"{name} must have the {len(mix.permutation)} rows of the mixed batch, "
                f"got {len(value)}"
            )
    up = check_scalar(criterion(queries[0], key))
    down = check_scalar(criterion(queries[-1], key[mix.permutation]))
    return mix.lam * up + (1 - mix.lam) * down


class MixMaskLoss(nn.Module):
    """The loss of MixMask around any siamese criterion: L_orig + λ L_up + (1 - λ) L_down.

    Eqs. 4-6, and two terms more for every further mix (Un-Mix). The criterion is called
    several times. What it holds (a queue, a running covariance, a counter) only L_orig
    changes, and every term sees it as it was before (:func:`frozen`).

    Args:
        criterion: ``criterion(query, key)`` with two ``(B, D)`` tensors gives a scalar, a mean
            over pairs that does not depend on their order: InfoNCE with any negatives,
            NT-Xent, a cosine distance.

    Raises:
        TypeError: If ``criterion`` is not callable.

    Example:
        >>> import torch
        >>> from mim_plugins.mixing import MixMask
        >>> loss_fn = MixMaskLoss(nn.functional.mse_loss)
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
        >>> images, key = torch.rand(8, 3, 32, 32), torch.rand(8, 4)
        >>> mix = MixMask()(images)
        >>> loss = loss_fn(encoder(images), key, (encoder(mix.images), mix))
    """

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        if not callable(criterion):
            raise TypeError(f"criterion must be callable, got {criterion!r}")
        self.criterion = criterion

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *mixed: tuple[Tensor | Sequence[Tensor], Mix],
    ) -> Tensor:
        """The total loss of a step.

        Args:
            query: ``(B, D)``: of the unmixed images.
            key: ``(B, D)``.
            mixed: For every mix of the step its queries and the mix; see :func:`mixture`.
                Without any, the criterion's own value.

        Raises:
            TypeError: If the criterion returns no scalar tensor.
            ValueError: If batch sizes do not fit.
        """
        before = self.frozen() if mixed else self.criterion
        loss = check_scalar(self.criterion(query, key))
        for queries, mix in mixed:
            loss = loss + mixture(before, queries, key, mix)
        return loss

    def frozen(self) -> Criterion:
        """The criterion as it is now; see :func:`frozen`."""
        return frozen(self.criterion)


def frozen(criterion: Criterion) -> Criterion:
    """``criterion`` as it is now at every call, and unchanged by it; see :class:`.State`.

    Buffers (a queue, its pointer, a centre), tensors in attributes, counters: what a call does
    to them is lost. Of a method that is what its object holds; a function must be free of
    side effects.
    """
    holder: Any = criterion
    while isinstance(holder, partial):
        holder = holder.func
    state = State(getattr(holder, "__self__", holder))

    def call(*args: Tensor, **kwargs: Tensor) -> Tensor:
        with state.restored():
            return criterion(*args, **kwargs)

    return call


def check_scalar(loss: Tensor) -> Tensor:
    """Return what a criterion returned if it is a scalar tensor, else raise TypeError."""
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"criterion must return a scalar tensor, got {got}")
    return loss
