"""MixMask in stock siamese algorithms, and as a batch augmentation of stock classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmpretrain.models.selfsup import BYOL, BaseSelfSupervisor, MoCo, SimCLR, SimSiam
from mmpretrain.models.selfsup.simclr import GatherLayer
from mmpretrain.models.utils import batch_shuffle_ddp, batch_unshuffle_ddp
from mmpretrain.registry import BATCH_AUGMENTS, MODELS, TASK_UTILS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ..._check import check_bool
from ...mixing import EraseMask, Mixer, MixMask, SplitBatchNorm, UnMix, mixture
from ...mixing.loss import Criterion
from ...mixing.mixmask import combine, is_single

for _mixer in (MixMask, EraseMask, UnMix):
    TASK_UTILS.register_module(module=_mixer, force=True)
MODELS.register_module("SplitBN", module=SplitBatchNorm, force=True)


class _MixedQueries(BaseSelfSupervisor):
    """What the four algorithms share: a stock step whose queries are also mixed.

    The step: encode the query views and their mixed copies, encode the keys once, compare
    every query with its key and every mixed query with its two. An algorithm says which of
    its views are queries, how keys are made and what the distance is.
    """

    query_views: slice = slice(None)  # the views that the query branch encodes
    views_per_forward: int = 1  # how many of them stock encodes at once
    direction_weight: float = 1.0  # of a view against the other in the stock loss
    is_stock: bool = True  # but for the mixers

    def __init__(
        self,
        *args: Any,
        mixing: dict | Mixer | None = None,
        unmix: dict | UnMix | None = None,
        concat_views: bool = False,
        mixmask: dict | Mixer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if mixing is not None and mixmask is not None:
            raise ValueError("mixing and its old name mixmask are one argument, got both")
        mixing = mixmask if mixing is None else mixing
        self.mixers = combine(_build("mixing", mixing, MixMask), _build("unmix", unmix, UnMix))
        self.concat_views = check_bool("concat_views", concat_views)

    def extra_repr(self) -> str:
        return f"mixers={list(self.mixers)}" if self.mixers else ""

    def loss(
        self, inputs: list[Tensor], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Stock ``loss`` without a mixer, and of a batch of one image, with a warning.

        Else ``loss_orig`` and one entry per mixer.

        Entries are ``loss_mixmask``, ``loss_erasemask``, ``loss_unmix``: λ L_up + (1 - λ)
        L_down. The runner sums them all (Eq. 5) and logs the sum as ``loss``.

        Args:
            inputs: Two views, each ``(B, C, H, W)``.
            data_samples: Unused, as in the stock algorithms.

        Raises:
            TypeError: If ``inputs`` is no list of views.
            ValueError: If they are not two, differ in size, or are too small to mix.
        """
        if not self.mixers and self.is_stock:
            return super().loss(inputs, data_samples, **kwargs)
        views = _two_views(inputs)
        mixers = () if self.mixers and is_single(views[0]) else self.mixers
        if not mixers and self.is_stock:
            return super().loss(inputs, data_samples, **kwargs)
        images = views[self.query_views]
        mixes = [mixer(images) for mixer in mixers]

        # encode the query views, then their mixed copies
        copies = [images]
        for mix in mixes:
            copies.extend(list(views) for views in zip(*(view.views for view in mix), strict=True))
        features = self.encode(copies)

        # the keys, of unmixed images only
        keys = self.keys(views, features[0])

        # compare
        criterion = self.criterion()
        queries = iter([[self.query(view) for view in copy] for copy in features])
        losses = {"loss_orig": self.original(criterion, next(queries), keys)}
        for mixer, mix in zip(mixers, mixes, strict=True):
            mixed = zip(*(next(queries) for _ in mix[0].views), strict=True)
            terms = [
                mixture(criterion, query, key, view)
                for query, key, view in zip(mixed, keys, mix, strict=True)
            ]
            losses[f"loss_{type(mixer).__name__.lower()}"] = (
                self.direction_weight * torch.stack(terms).sum()
            )
        self.after(keys)
        return losses

    def encode(self, copies: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Neck features ``(B, D)`` of the views of every copy.

        In as many forwards as stock would take, or in one with ``concat_views``.
        """
        views = len(copies[0])
        batches = [view for copy in copies for view in copy]
        number = len(batches) if self.concat_views else self.views_per_forward
        features: list[Tensor] = []
        for start in range(0, len(batches), number):
            some = batches[start : start + number]
            joint = self.neck(self.backbone(some[0] if number == 1 else torch.cat(some)))[0]
            features.extend(joint.chunk(number))
        return [features[start : start + views] for start in range(0, len(features), views)]

    def keys(self, views: Sequence[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        """The key ``(B, D)`` of every query view: the other view's features."""
        return [features[1], features[0]]

    def query(self, features: Tensor) -> Tensor:
        """What is compared with the key."""
        return features

    def criterion(self) -> Criterion:
        """The distance of query and key ``(B, D)``, one for all terms of the step."""
        raise NotImplementedError

    def original(
        self,
        criterion: Criterion,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
    ) -> Tensor:
        """The stock loss, L_orig."""
        terms = [criterion(query, key) for query, key in zip(queries, keys, strict=True)]
        return self.direction_weight * torch.stack(terms).sum()

    def after(self, keys: Sequence[Tensor]) -> None:
        """What stock does once per step when the loss is known."""


@MODELS.register_module()
class MixMaskMoCo(_MixedQueries, MoCo):
    """Stock ``MoCo`` plus the soft distance of mixed queries (MixMask, Eqs. 4-6).

    The query view is mixed, the key view never. All terms see the queue as it was before
    this step's keys, which are enqueued once; the key encoder is updated once.

    Parameters, buffers and ``state_dict`` are the stock ones. Without a mixer the step equals
    the stock one bit for bit. With one, mixed images have a forward of their own, so that the
    original term stays stock's; running statistics of batch norm then see both.

    Args:
        *args, **kwargs: Those of ``MoCo``.
        symmetric (bool): Compare the second view's query with the first view's key as well and
            add the two losses; then both views are mixed, and the keys of both, twice as many,
            are enqueued. As in MoCo's CIFAR demo, from which the paper's CIFAR and Tiny-ImageNet
            figures come; ``queue_len`` must be a multiple of two batches. Defaults to False.
        mixing (dict | Mixer, optional): Arguments of :class:`mim_plugins.mixmask.MixMask`,
            e.g. ``dict(grid_size=8)``; with ``type='EraseMask'`` those of the erase-based
            baseline. Defaults to None, no such term.
        unmix (dict | UnMix, optional): Arguments of :class:`mim_plugins.mixmask.UnMix`, e.g.
            ``dict(prob_global=0.5)``. Beside it MixMask takes another permutation, unless it
            names its own. Defaults to None, no such term.
        concat_views (bool): Encode original and mixed queries in one forward. They then share
            batch statistics, so that the original term is no longer stock's. Defaults to
            False.
        mixmask: The old name of ``mixing``.

    Raises:
        TypeError: If ``mixing``, ``unmix`` or ``concat_views`` has the wrong type.
        ValueError: If one of their arguments is out of range.
    """

    def __init__(self, *args: Any, symmetric: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_stock = not check_bool("symmetric", symmetric)
        self.query_views = slice(2 if symmetric else 1)

    def keys(self, views: Sequence[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            self.encoder_k.update_parameters(nn.Sequential(self.backbone, self.neck))
            return [self._key(view) for view in views[::-1][self.query_views]]

    def _key(self, images: Tensor) -> Tensor:
        images, unshuffle = batch_shuffle_ddp(images)  # for batch norm, as stock
        return batch_unshuffle_ddp(F.normalize(self.encoder_k(images)[0], dim=1), unshuffle)

    def query(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1)

    def criterion(self) -> Criterion:
        queue = self.queue.clone().detach()  # the enqueueing that follows writes into it

        def contrast(query: Tensor, key: Tensor) -> Tensor:
            with query.device:  # where the head makes its labels; else a copy that is waited for
                return self.head.loss((query * key).sum(dim=1, keepdim=True), query @ queue)

        return contrast

    def after(self, keys: Sequence[Tensor]) -> None:
        number = sum(map(len, keys)) * get_world_size()
        if not self.is_stock and self.queue_len % number:
            raise ValueError(
                f"queue_len must be a multiple of the {number} keys of a step (symmetric=True: of "
                f"both views), got {self.queue_len}"
            )
        self._dequeue_and_enqueue(torch.cat(tuple(reversed(keys))))


class _PredictedQueries(_MixedQueries):
    """BYOL and SimSiam: the head predicts a key, which gets no gradient, from a query."""

    def query(self, features: Tensor) -> Tensor:
        # Once per batch, and not once per term: the predictor has batch norm.
        return self.head.predictor([features])[0]

    def criterion(self) -> Criterion:
        return lambda query, key: self.head.loss_module(query, key.detach())


@MODELS.register_module()
class MixMaskBYOL(_PredictedQueries, BYOL):
    """Stock ``BYOL`` plus the soft distance of mixed online views (MixMask, Eqs. 4-5).

    Both views are mixed, with the same mask and permutation, on the online side; the target
    network sees unmixed images only and is updated once.

    Args:
        *args, **kwargs: Those of ``BYOL``.
        mixing, unmix, concat_views: As of :class:`MixMaskMoCo`.
    """

    direction_weight = 2.0

    def keys(self, views: Sequence[Tensor], features: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            self.target_net.update_parameters(nn.Sequential(self.backbone, self.neck))
            first, second = (self.target_net(view)[0] for view in views)
        return [second, first]


@MODELS.register_module()
class MixMaskSimSiam(_PredictedQueries, SimSiam):
    """Stock ``SimSiam`` plus the soft distance of mixed views (MixMask, Eqs. 4-5).

    Both views are mixed, with the same mask and permutation, on the side of the predictor;
    the other side, without gradient, is the unmixed view's.

    Args:
        *args, **kwargs: Those of ``SimSiam``.
        mixing, unmix, concat_views: As of :class:`MixMaskMoCo`.
    """

    direction_weight = 0.5


@MODELS.register_module()
class MixMaskSimCLR(_MixedQueries, SimCLR):
    """Stock ``SimCLR`` plus the soft distance of mixed views (MixMask, Eqs. 4-5).

    Both views are mixed, with the same mask and permutation; the mixed first view is compared
    with the unmixed second and the other way round, and the mean of the two is taken. The
    negatives are those of the pair of batches compared, gathered over all ranks: the partner
    of an image is among them in L_up, and the image itself in L_down.

    Args:
        *args, **kwargs: Those of ``SimCLR``.
        mixing, unmix, concat_views: As of :class:`MixMaskMoCo`.
    """

    views_per_forward = 2
    direction_weight = 0.5

    def criterion(self) -> Criterion:
        return self._contrast

    def original(
        self,
        criterion: Criterion,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
    ) -> Tensor:
        return criterion(queries[0], keys[0])  # has both directions in it

    def _contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """NT-Xent of two batches ``(B, D)``, all other rows of both being negatives."""
        z = torch.stack((first, second), dim=1).flatten(0, 1)  # rows 2i and 2i + 1 are a pair
        z = z / (z.norm(dim=1, keepdim=True) + 1e-10)
        z = torch.cat(GatherLayer.apply(z))
        similarity = z @ z.T
        rows = torch.arange(len(z), device=z.device)
        positive = similarity.gather(1, (rows ^ 1)[:, None])
        others = (rows // 2 * 2)[:, None] + 2 + rows[:-2]  # all but the pair, counted on from it
        with z.device:  # where the head makes its labels; else a copy that is waited for
            return self.head.loss(positive, similarity.gather(1, others % len(z)))


@BATCH_AUGMENTS.register_module(name="MixMask")
class MixMaskAugment:
    """MixMask where CutMix stands in a stock classifier: ``train_cfg.augments``.

    Scores are mixed by the share of pixels. A batch of one image stays as it is, as with the
    stock augmentations, with a warning.

    Args:
        **kwargs: Those of :class:`mim_plugins.mixmask.MixMask`; ``permutation`` defaults to
            ``'random'`` here, as CutMix's.
    """

    def __init__(self, permutation: str = "random", **kwargs: Any) -> None:
        self.mixer = MixMask(permutation=permutation, **kwargs)

    def __call__(self, batch_inputs: Tensor, batch_score: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images ``(B, C, H, W)`` and their scores ``(B, num_classes)``."""
        score = batch_score.float()
        if is_single(batch_inputs):
            return batch_inputs, score
        mix = self.mixer(batch_inputs)
        return mix.images, mix.lam * score + (1 - mix.lam) * score[mix.permutation]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mixer!r})"


def _build(name: str, mixer: dict | Mixer | None, default: type[Mixer]) -> Any:
    if isinstance(mixer, dict):
        return TASK_UTILS.build({"type": default.__name__, **mixer})
    if mixer is not None and not isinstance(mixer, Mixer):
        raise TypeError(
            f"{name} must be a dict of arguments of {default.__name__}, a mixer or None, "
            f"got {mixer!r}"
        )
    return mixer


def _two_views(inputs: Any) -> list[Tensor]:
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"inputs must be a list of two views, got {type(inputs).__name__}")
    if len(inputs) != 2:
        raise ValueError(f"inputs must be two views, got {len(inputs)}")
    first, second = inputs
    if first.shape != second.shape:
        raise ValueError(
            f"inputs must be two views of equal size, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    return [first, second]
