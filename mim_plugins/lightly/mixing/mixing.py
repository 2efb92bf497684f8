"""MixMask in lightly's siamese pipelines: a loss for any of its criteria, and unmodified modules.

The module's own training step runs on the unmixed views, with all its effects, and once more
per mixer for the queries of the mixed views, without any (:mod:`.replay`). The terms of Eq. 4
are then added to the loss with the weights that the stock step gave to its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ...mixing import Mixer, UnMix, loss
from ...mixing.loss import Criterion
from ...mixing.mixmask import combine, is_single
from .replay import Record


class MixMaskLoss(loss.MixMaskLoss):
    """L_orig + λ L_up + (1 - λ) L_down around a siamese loss of lightly (MixMask, Eqs. 4-6).

    For training loops that call the loss themselves. ``NTXentLoss`` with a memory bank
    enqueues the keys once, in L_orig, and all terms see the bank as it was before.

    Args:
        criterion: ``NTXentLoss``, ``NegativeCosineSimilarity`` or any callable of two
            ``(B, D)`` tensors that gives a scalar; see :class:`mim_plugins.loss.MixMaskLoss`.

    Raises:
        TypeError: If ``criterion`` is not callable.

    Example:
        >>> from lightly.loss import NTXentLoss
        >>> from mim_plugins.mixmask import MixMask
        >>> loss_fn = MixMaskLoss(NTXentLoss(memory_bank_size=(64, 4)))
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
        >>> images, key = torch.rand(8, 3, 32, 32), torch.rand(8, 4)
        >>> mix = MixMask()(images)
        >>> loss = loss_fn(encoder(images), key, (encoder(mix.images), mix))
    """

    def frozen(self) -> Criterion:
        return frozen(self.criterion)


def frozen(criterion: Any) -> Criterion:
    """``criterion`` as it is now at every call; see :func:`mim_plugins.mixing.loss.frozen`."""
    module = getattr(criterion, "_orig_mod", criterion)  # of torch.compile, which has no copy
    bank: Any = getattr(module, "memory_bank", None)
    if type(bank) is MemoryBankModule and bank.bank.ndim == 2:
        # No copy of the bank for every term, to enqueue into and throw away.
        criterion = copy.copy(module)
        criterion._modules = {**module._modules, "memory_bank": _StillBank(bank)}
    return loss.frozen(criterion)


class _StillBank(nn.Module):
    """The negatives of a memory bank at one moment."""

    def __init__(self, bank: MemoryBankModule) -> None:
        super().__init__()
        negatives = bank.bank.clone()
        if bank.feature_dim_first:
            negatives = negatives.transpose(0, -1)
        self.negatives = lambda: negatives  # no state, of which copies would be made

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor]:
        return output, self.negatives()


class Mixing:
    """The mixers of one wrapped module, and its training step with them.

    Args:
        model: The module: its ``training_step`` compares projections by ``self.criterion``, a
            module called with two ``(B, D)`` tensors of which one or both need gradients.
        mixing: :class:`MixMask`, :class:`EraseMask` or a mixer of one's own.
        unmix: :class:`UnMix`.

    Raises:
        TypeError: If ``mixing`` or ``unmix`` has the wrong type, or ``model`` has no criterion.
        ValueError: If ``model`` optimizes manually.
    """

    def __init__(self, model: LightningModule, mixing: Mixer | None, unmix: UnMix | None) -> None:
        self.mixers = combine(mixing, unmix)
        self.is_first_step = True
        if not isinstance(getattr(model, "criterion", None), nn.Module):
            raise TypeError(
                f"{type(model).__name__} has no module named criterion; mix in its training step "
                "with MixMask and MixMaskLoss"
            )
        if not model.automatic_optimization:
            raise ValueError(
                f"{type(model).__name__} optimizes manually: its loss is out of reach; mix in its "
                "training step with MixMask and MixMaskLoss"
            )

    def step(
        self, model: LightningModule, stock_step: Any, batch: Any, *args: Any, **kw: Any
    ) -> Any:
        """The stock step's output with the terms of all mixers in its loss.

        A batch of one image has the stock step alone, with a warning.

        Args:
            model: The module.
            stock_step: Its own ``training_step``.
            batch: Lists, tuples, dicts and so on; the floating ``(B, C, H, W)`` tensors in it,
                of equal shape, are the views.
            args, kw: What else ``stock_step`` takes.

        Raises:
            TypeError: If ``batch`` holds no views, or the criterion is not called with two
                tensors, or returns no scalar.
            ValueError: If the views differ in shape.
            RuntimeError: If the step cannot be repeated without repeating its effects.
        """
        views = find_views(batch)
        if is_single(views[0]):
            return stock_step(batch, *args, **kw)
        before = frozen(model.criterion)  # every term sees the queue without this step's keys
        record = Record(model, by_value=self.is_first_step)
        with record.recording():
            output = stock_step(batch, *args, **kw)
        loss = output["loss"] if isinstance(output, dict) else output
        if loss is None:  # the step skips this batch
            return output
        record.check()
        self.is_first_step = False
        weights = torch.autograd.grad(
            loss, [call.loss for call in record.calls], retain_graph=True, allow_unused=True
        )
        if all(weight is None for weight in weights):
            raise RuntimeError(
                f"the loss of {type(model).__name__}'s training step does not depend on "
                "self.criterion; mix in the step itself with MixMask and MixMaskLoss"
            )
        total = loss
        for mixer in self.mixers:
            mixes = mixer(views)
            replays = []
            for mixed in zip(*(mix.views for mix in mixes), strict=True):
                with record.replaying() as queries:
                    stock_step(with_views(batch, views, mixed), *args, **kw)
                replays.append(queries)
            terms = [
                weight * call.mixture(before, queries, mixes[0])
                for call, weight, *queries in zip(record.calls, weights, *replays, strict=True)
                if weight is not None
            ]
            term = torch.stack(terms).sum()
            name = f"loss_{type(mixer).__name__.lower()}"
            model.log(name, term.detach(), sync_dist=True, batch_size=len(views[0]))
            total = total + term
        if isinstance(output, dict):
            return {**output, "loss": total}
        return total


def find_views(batch: Any) -> list[Tensor]:
    """The floating ``(B, C, H, W)`` tensors of a batch, in order; TypeError if there are none."""
    tensors: list[Tensor] = []
    apply_to_collection(batch, Tensor, tensors.append)
    views = [each for each in tensors if each.ndim == 4 and each.is_floating_point()]
    if not views:
        raise TypeError(
            f"batch must hold views (B, C, H, W) of images to mix, got {type(batch).__name__}"
        )
    return views


def with_views(batch: Any, views: Sequence[Tensor], mixed: Sequence[Tensor]) -> Any:
    """``batch`` with ``mixed`` in the places of ``views``."""
    swap = {id(view): other for view, other in zip(views, mixed, strict=True)}
    return apply_to_collection(batch, Tensor, lambda tensor: swap.get(id(tensor), tensor))
