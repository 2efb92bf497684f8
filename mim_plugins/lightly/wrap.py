"""Plugins on unmodified LightningModules.

The instance gets a subclass of its own class in which the stock methods run with another
mask function among their globals. Nothing of lightly or of the class is patched, and the
``state_dict`` stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import torch
from lightly.models import utils
from pytorch_lightning import LightningModule
from torch import Tensor

from ..masking import Masking
from .masking import block_mask, token_mask

MASK_FUNCTIONS = ("random_token_mask", "random_block_mask")


def wrap(model: LightningModule, *, masking: Masking, mask_ratio_var: float = 0.05) -> Any:
    """Give a stock masked-image-modelling module another masking.

    Every method of the module that calls lightly's ``random_token_mask`` (MAE, SimMIM) or
    ``random_block_mask`` (iBOT) gets masks for the images of the current training batch
    instead: ``batch[0]`` is a tensor of images or a list of views, of which the first one
    or two are masked, as lightly's own modules do.

    Args:
        model: An instance of an unmodified module. It is changed in place: only its class.
        masking: The mask generator, e.g. ``DPPMasking(mask_ratio=0.75, patch_size=16)``.
        mask_ratio_var: For ``random_block_mask``: the ratio of each image is drawn from
            ``masking.mask_ratio`` plus or minus this. Default: 0.05 (DPPMask, table 8).

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``model`` or ``masking`` has the wrong type, or the module never calls
            one of lightly's mask functions.
        ValueError: If ``model`` is wrapped already, or has another mask ratio or patch size
            than ``masking``.

    Example:
        >>> model = wrap(MAE(), masking=DPPMasking(tau=0.5))  # doctest: +SKIP
        >>> Trainer().fit(model, dataloader)  # doctest: +SKIP
    """
    if not isinstance(model, LightningModule):
        raise TypeError(f"model must be a LightningModule, got {type(model).__name__}")
    if not isinstance(masking, Masking):
        raise TypeError(f"masking must be a mim_plugins.masking.Masking, got {masking!r}")
    if hasattr(type(model), "_mim_plugin"):
        raise ValueError(f"model is wrapped already, with {type(model)._mim_plugin.masking}")
    for name in ("mask_ratio", "patch_size"):
        own = getattr(model, name, None)
        if own is not None and own != getattr(masking, name):
            raise ValueError(
                f"masking has {name}={getattr(masking, name)}, the model {own}: make them equal"
            )
    _attach(model, _MaskingPlugin(masking, mask_ratio_var))
    return model


class _MaskingPlugin:
    """The mask functions of one wrapped module, which see the batch of the current step."""

    def __init__(self, masking: Masking, mask_ratio_var: float) -> None:
        self.masking = masking
        self.mask_ratio_var = mask_ratio_var
        self.batch: Any = None

    def random_token_mask(
        self,
        size: tuple[int, int],
        mask_ratio: float = 0.6,
        mask_class_token: bool = False,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        images = self._images(size[0])
        return token_mask(images, size, mask_ratio, self.masking, mask_class_token, device)

    def random_block_mask(
        self,
        size: tuple[int, int, int],
        batch_mask_ratio: float = 0.5,
        device: torch.device | str | None = None,
        **blocks: object,
    ) -> Tensor:
        images = self._images(size[0])
        return block_mask(images, size, self.masking, batch_mask_ratio, self.mask_ratio_var, device)

    def _images(self, number: int) -> Tensor:
        if self.batch is None:
            raise RuntimeError("masks of a wrapped model are drawn inside training_step only")
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


def _attach(model: LightningModule, plugin: _MaskingPlugin) -> None:
    """Make ``model`` an instance of a subclass of its class that uses ``plugin``."""
    stock = type(model)
    rebound = _rebind_mask_functions(stock, plugin)
    if not rebound:
        raise TypeError(
            f"{stock.__name__} calls neither {' nor '.join(MASK_FUNCTIONS)} of "
            "lightly.models.utils in any of its methods"
        )
    stock_step = rebound.get("training_step", stock.training_step)

    def training_step(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        plugin.batch = args[0] if args else kwargs["batch"]
        try:
            return stock_step(self, *args, **kwargs)
        finally:
            plugin.batch = None

    def __reduce_ex__(self: LightningModule, protocol: int) -> tuple:
        # Copies and pickles (ddp_spawn) cannot find this class by its name.
        return (_rebuild, (stock, plugin), *super(wrapped, self).__reduce_ex__(protocol)[2:])

    wrapped = type(
        stock.__name__,
        (stock,),
        {
            **rebound,
            "training_step": training_step,
            "__reduce_ex__": __reduce_ex__,
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
            "__doc__": stock.__doc__,
            "_mim_plugin": plugin,
        },
    )
    model.__class__ = wrapped


def _rebuild(stock: type[LightningModule], plugin: _MaskingPlugin) -> LightningModule:
    model = stock.__new__(stock)
    _attach(model, plugin)
    return model


def _rebind_mask_functions(
    stock: type[LightningModule], plugin: _MaskingPlugin
) -> dict[str, Callable]:
    """The methods of ``stock`` that call lightly's mask functions, with the plugin's instead."""
    rebound: dict[str, Callable] = {}
    for cls in stock.__mro__:
        if cls is LightningModule:
            break
        for name, function in vars(cls).items():
            if isinstance(function, FunctionType) and name not in rebound:
                replaced = _replaced_globals(function, plugin)
                if replaced:
                    rebound[name] = _with_globals(function, replaced)
    return rebound


def _replaced_globals(function: FunctionType, plugin: _MaskingPlugin) -> dict[str, Any]:
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
