"""Plugins on unmodified LightningModules.

The instance gets a subclass of its own class in which the stock methods run with another
mask function among their globals, or around which terms are added to the loss. Nothing of
lightly or of the class is patched. The ``state_dict`` stays as it is, but for the weights of
regularizers that have some, which lie under ``regularizers.``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from lightly.models import utils
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from .._check import check_list, check_weight
from ..masking import Masking
from ..masking.base import agree
from ..mixing import EraseMask, MixMask, UnMix
from .masking import block_mask, token_mask
from .mixing.mixing import Mixing
from .regularizers.regularize import Regularization

MASK_FUNCTIONS = ("random_token_mask", "random_block_mask")


def wrap(
    model: LightningModule,
    *,
    masking: Masking | None = None,
    regularizers: Sequence[nn.Module] = (),
    mixing: MixMask | EraseMask | None = None,
    unmix: UnMix | None = None,
    mask_ratio_var: float = 0.05,
) -> Any:
    """Give a stock module another masking, terms in its loss, or mixed views.

    With ``masking``, every method of the module that calls lightly's ``random_token_mask``
    (MAE, SimMIM) or ``random_block_mask`` (iBOT) gets masks for the images of the current
    training batch instead: ``batch[0]`` is a tensor of images or a list of views, of which
    the first one or two are masked, as lightly's own modules do. A masking that draws several
    masks per image (``ComplementaryMasking``) gets the batch repeated as often. Steps of
    validation and test get masks too, one per image, and nothing is added to their loss.

    With ``regularizers``, each term is called on the output of the module's encoder, a
    ``MaskedVisionTransformer`` of lightly, logged as ``loss_<name>`` and added to the loss.

    With ``mixing`` or ``unmix``, for siamese modules (MoCo, BYOL, SimCLR, SimSiam and others of
    their shape): the queries are repeated on mixed views, and the two terms of MixMask's Eq. 4
    are added to the loss, with the weight that the step gives to its own, and logged. The keys
    are those of the unmixed views; queue and momentum encoder are updated once. MoCo mixes its
    query view; BYOL and SimSiam both views, on the side of the predictor; SimCLR both views,
    each compared with the other one unmixed. See :mod:`mim_plugins.lightly.mixing.mixing`.

    Args:
        model: An instance of an unmodified module. It is changed in place.
        masking: The mask generator, e.g. ``DPPMasking(tau=0.5)``.
            Default: the module's own masks.
        regularizers: Terms of different types, e.g. ``[UniformityLoss(weight=0.01)]``; one of
            weight 0 is left out. Default: none.
        mixing: ``MixMask(...)``, or ``EraseMask(...)`` for the erasing baseline. Beside
            ``unmix``, MixMask takes another permutation than it. Default: none.
        unmix: ``UnMix(...)``. Default: none.
        mask_ratio_var: For ``random_block_mask``: the ratio of each image is drawn from
            its mean plus or minus this. Default: 0.05 (DPPMask, table 8).

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If an argument has the wrong type, the module never calls one of lightly's
            mask functions (``masking``), has no encoder of lightly's (``regularizers``), or no
            module named ``criterion`` (``mixing``, ``unmix``).
        ValueError: If ``model`` is wrapped already, has another mask ratio or patch size
            than ``masking`` itself, optimizes manually (``mixing``, ``unmix``), nothing is to be
            added to it, or mixing stands beside masking or regularizers.

    Example:
        >>> model = wrap(MAE(), masking=DPPMasking(tau=0.5))  # doctest: +SKIP
        >>> Trainer().fit(model, dataloader)  # doctest: +SKIP
    """
    if not isinstance(model, LightningModule):
        raise TypeError(
            "model must be a pytorch_lightning.LightningModule, as lightly's are, got "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    if hasattr(type(model), "_mim_plugin"):
        raise ValueError(f"model is wrapped already, with {type(model)._mim_plugin}")
    regularizers = check_list("regularizers", regularizers)
    check_weight("mask_ratio_var", mask_ratio_var)
    mixed = mixing is not None or unmix is not None
    if masking is None and not regularizers and not mixed:
        raise ValueError("wrap() needs masking, regularizers, mixing or unmix, got None")
    if mixed and (masking is not None or regularizers):
        raise ValueError(
            "mixing and unmix are for siamese modules, masking and regularizers for masked image "
            "modelling: they cannot be combined"
        )
    if masking is not None:
        _check_masking(model, masking)
    plugin = _Plugin(
        masking,
        mask_ratio_var,
        Regularization(model, regularizers) if regularizers else None,
        Mixing(model, mixing, unmix) if mixed else None,
    )
    _attach(model, plugin)
    return model


def _check_masking(model: LightningModule, masking: Masking) -> None:
    if not isinstance(masking, Masking):
        raise TypeError(f"masking must be a mim_plugins.masking.Masking, got {masking!r}")
    for name in ("mask_ratio", "patch_size"):
        agree(name, getattr(masking, name), getattr(model, name, None))


class _Plugin:
    """What one wrapped module does in a step: its mask functions, which see the batch."""

    def __init__(
        self,
        masking: Masking | None,
        mask_ratio_var: float,
        regularization: Regularization | None,
        mixing: Mixing | None,
    ) -> None:
        self.masking = masking
        self.mask_ratio_var = mask_ratio_var
        self.regularization = regularization
        self.mixing = mixing
        self.batch: Any = None
        self.copies = 1  # of each image in it
        self.has_drawn = False

    def __repr__(self) -> str:
        parts = {name: getattr(self, name) for name in ("masking", "regularization", "mixing")}
        return ", ".join(f"{name}={part}" for name, part in parts.items() if part is not None)

    @property
    def num_masks(self) -> int:
        return 1 if self.masking is None else self.masking.num_masks

    @contextmanager
    def seeing(self, batch: Any, copies: int = 1) -> Iterator[None]:
        """Draw masks for the images of ``batch``, which holds each ``copies`` times."""
        before = self.batch, self.copies
        self.batch, self.copies = batch, copies
        try:
            yield
        finally:
            self.batch, self.copies = before

    def random_token_mask(
        self,
        size: tuple[int, int],
        mask_ratio: float = 0.6,
        mask_class_token: bool = False,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert self.masking is not None
        images = self._images(size[0])
        images = images[: len(images) // self.copies]
        size = (len(images) * self.num_masks, *size[1:])
        keep, mask = token_mask(images, size, mask_ratio, self.masking, mask_class_token, device)
        number = len(images) * self.copies
        return keep[:number], mask[:number]

    def random_block_mask(
        self,
        size: tuple[int, int, int],
        batch_mask_ratio: float = 0.5,
        device: torch.device | str | None = None,
        **blocks: object,
    ) -> Tensor:
        assert self.masking is not None
        images = self._images(size[0])
        return block_mask(images, size, self.masking, batch_mask_ratio, self.mask_ratio_var, device)

    def _images(self, number: int) -> Tensor:
        if self.batch is None:
            raise RuntimeError(
                "masks of a wrapped model are drawn inside its training, validation and test step "
                "only"
            )
        if not isinstance(self.batch, (list, tuple)):
            raise TypeError(
                "the batch must be a list, images or a list of views first, to draw masks for it, "
                f"got {type(self.batch).__name__}"
            )
        self.has_drawn |= torch.is_grad_enabled()  # in a training step
        views = self.batch[0]
        if isinstance(views, Tensor):
            views = [views]
        for images in (views[:1], views[:2]):
            if sum(map(len, images)) == number:
                return images[0] if len(images) == 1 else torch.cat(images)
        raise ValueError(
            f"masks for {number} images were asked for, but the first views of the batch hold "
            f"{[len(view) for view in views[:2]]}"
        )


def _repeat(batch: Any, times: int) -> Any:
    """Everything in ``batch`` as often as there are masks per image, mask by mask."""
    if isinstance(batch, Tensor):
        return batch.repeat(times, *[1] * (batch.ndim - 1))
    if isinstance(batch, (list, tuple)):
        if batch and isinstance(batch[0], str):
            return type(batch)(batch) * times
        return type(batch)(_repeat(part, times) for part in batch)
    raise TypeError(
        f"several masks per image need a batch of tensors and lists, got {type(batch).__name__}"
    )


def _attach(model: LightningModule, plugin: _Plugin) -> None:
    """Make ``model`` an instance of a subclass of its class that uses ``plugin``."""
    stock = type(model)
    rebound: dict[type, type] = {}
    if plugin.masking is not None:
        rebound = _rebind_mask_functions(stock, plugin)
        if not rebound:
            raise TypeError(
                f"{stock.__name__} calls neither {' nor '.join(MASK_FUNCTIONS)} of "
                "lightly.models.utils in any of its methods"
            )

    class Rebound(type(stock)):  # type: ignore[misc]
        """Puts the rebound methods of a class before it, where ``super()`` finds them too."""

        def mro(cls) -> list[type]:
            order = super().mro()
            return [c for known in order for c in (rebound.get(known), known) if c is not None]

    def training_step(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        stock_step = super(wrapped, self).training_step
        if not torch.is_grad_enabled():  # of a validation step
            return stock_step(*args, **kwargs)
        batch = args[0] if args else kwargs.pop("batch")
        if plugin.num_masks > 1:
            batch = _repeat(batch, plugin.num_masks)
        with plugin.seeing(batch, plugin.num_masks):
            if plugin.mixing is not None:
                return plugin.mixing.step(self, stock_step, batch, *args[1:], **kwargs)
            if plugin.regularization is None:
                output = stock_step(batch, *args[1:], **kwargs)
            else:
                with plugin.regularization.recording(self) as record:
                    output = stock_step(batch, *args[1:], **kwargs)
                output = plugin.regularization.add_terms(self, output, record, plugin.num_masks)
        if plugin.masking is not None and not plugin.has_drawn:
            raise RuntimeError(
                f"the training step of {stock.__name__} drew none of its masks by a method that "
                "wrap() can reach: not in a function outside the class, nor in a method called by "
                "the name of its class; call mim_plugins.lightly.token_mask there"
            )
        return output

    def evaluation_step(name: str) -> Callable:
        def step(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
            with plugin.seeing(args[0] if args else kwargs.get("batch")):
                return getattr(super(wrapped, self), name)(*args, **kwargs)

        return step

    def configure_optimizers(self: LightningModule) -> Any:
        configured = super(wrapped, self).configure_optimizers()
        if plugin.regularization is not None:
            plugin.regularization.add_parameters(self, configured)
        return configured

    def __reduce_ex__(self: LightningModule, protocol: int) -> tuple:
        # Copies and pickles (ddp_spawn) cannot find this class by its name.
        return (_rebuild, (stock, plugin), *super(wrapped, self).__reduce_ex__(protocol)[2:])

    wrapped = Rebound(
        stock.__name__,
        (stock,),
        {
            "training_step": training_step,
            # Lightning evaluates a module that has them.
            **{
                name: evaluation_step(name)
                for name in ("validation_step", "test_step")
                if getattr(stock, name) is not getattr(LightningModule, name)
            },
            "configure_optimizers": configure_optimizers,
            "__reduce_ex__": __reduce_ex__,
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
            "__doc__": stock.__doc__,
            "_mim_plugin": plugin,
        },
    )
    model.__class__ = wrapped


def _rebuild(stock: type[LightningModule], plugin: _Plugin) -> LightningModule:
    model = stock.__new__(stock)
    _attach(model, plugin)
    return model


def _rebind_mask_functions(stock: type[LightningModule], plugin: _Plugin) -> dict[type, type]:
    """For each class with methods that call lightly's mask functions, one with the plugin's."""
    rebound: dict[type, type] = {}
    for cls in stock.__mro__:
        if cls is LightningModule:
            break
        methods: dict[str, Callable] = {}
        for name, function in vars(cls).items():
            if isinstance(function, FunctionType):
                replaced = _replaced_globals(function, plugin)
                if replaced:
                    methods[name] = _with_globals(function, replaced)
        if methods:
            rebound[cls] = type(cls.__name__, (), methods)
    return rebound


def _replaced_globals(function: FunctionType, plugin: _Plugin) -> dict[str, Any]:
    """Globals of ``function`` that are a mask function, or lightly's utils when it calls one."""
    names = set(function.__code__.co_names)
    called = names & set(MASK_FUNCTIONS)
    replaced: dict[str, Any] = {}
    for name in names & set(function.__globals__):
        value = function.__globals__[name]
        if value is utils and called:
            overlay = ModuleType(utils.__name__, utils.__doc__)
            vars(overlay).update(vars(utils))
            vars(overlay).update({mask: getattr(plugin, mask) for mask in called})
            replaced[name] = overlay
        elif any(value is getattr(utils, mask) for mask in MASK_FUNCTIONS):
            replaced[name] = getattr(plugin, value.__name__)
    return replaced


def _with_globals(function: FunctionType, replaced: dict[str, Any]) -> FunctionType:
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **replaced},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    copy.__doc__ = function.__doc__
    return copy
