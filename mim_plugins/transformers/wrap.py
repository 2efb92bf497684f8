"""Masks and terms for unmodified models of transformers, by forward hooks of the instance."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._check import check_bool, check_list
from .._observe import glancing
from ..masking import Masking
from ..regularizers import Step, named_terms, term_losses

# What a model's forward calls its masks: the random numbers of MAE, the mask of all others.
MASK_ARGUMENTS = ("noise", "bool_masked_pos")
SIMMIM_RATIO = 0.6  # of models whose masks come from the data, so that they know no ratio


def wrap(
    model: PreTrainedModel,
    *,
    masking: Masking | None = None,
    regularizers: Sequence[nn.Module] = (),
    replace_masks: bool = False,
) -> PreTrainedModel:
    """Give a masked image model of transformers another masking and terms in its loss.

    ``ViTMAEForPreTraining`` takes the masks through its ``noise`` argument, and always when
    none is given, as it draws its own. Models with ``bool_masked_pos``
    (``ViTForMaskedImageModeling``, DeiT, Swin) get them in training mode. ``Trainer`` and
    loops of one's own stay as they are, ``state_dict`` too, but for the weights of
    regularizers that have some, which lie under ``regularizers.``.

    A masking that draws several masks per image (``ComplementaryMasking``) gets the batch
    repeated as often, so that outputs have as many rows.

    Args:
        model: An instance of an unmodified model. It is changed in place.
        masking: The mask generator, e.g. ``DPPMasking(tau=0.5)``. Ratio and patch size are
            the model's; models without a ratio take that of the masks they replace, else
            0.6, SimMIM's, unless the masking has one. Default: the model's own masks.
        regularizers: Terms on the encoder's output, e.g. ``[UniformityLoss(weight=0.01)]``,
            added to the loss; see :func:`term_values`. Default: none.
        replace_masks: In training, ignore the masks that the caller passes, as
            transformers' ``run_mim.py`` does, but for their ratio. If False, both are an
            error. Default: False.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If an argument has the wrong type or the model takes no masks.
        ValueError: If the model is wrapped already, its patches are not square, or nothing is
            to be added.

    Example:
        >>> model = wrap(ViTMAEForPreTraining(config), masking=DPPMasking())  # doctest: +SKIP
        >>> Trainer(model, args, train_dataset=dataset).train()  # doctest: +SKIP
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers.PreTrainedModel, got {type(model).__name__}")
    if hasattr(model, "mim_plugin"):
        raise ValueError(f"model is wrapped already, with {model.mim_plugin}")
    if masking is not None and not isinstance(masking, Masking):
        raise TypeError(f"masking must be a mim_plugins.masking.Masking, got {masking!r}")
    if masking is None and not check_list("regularizers", regularizers):
        raise ValueError("wrap() needs masking or regularizers, got None")
    plugin = _Plugin(model, masking, check_bool("replace_masks", replace_masks))
    if regularizers:
        if hasattr(model, "regularizers"):
            raise ValueError(f"{type(model).__name__} has an attribute regularizers already")
        model.regularizers = named_terms(regularizers)
        model.base_model.register_forward_hook(plugin.after_encoder)
        model.register_forward_hook(plugin.after)
    model.register_forward_pre_hook(plugin.before, with_kwargs=True)
    setattr(model, "mim_plugin", plugin)  # noqa: B010  (no submodule)
    return model


def term_values(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the regularizers of a wrapped model were in its last step, without gradient."""
    plugin = getattr(model, "mim_plugin", None)
    if not isinstance(plugin, _Plugin):
        raise TypeError(f"model must be wrapped, got {type(model).__name__}")
    return plugin.values


class _Plugin:
    """The hooks of one model, and what they hand over within a step."""

    def __init__(
        self, model: PreTrainedModel, masking: Masking | None, replace_masks: bool
    ) -> None:
        names = inspect.signature(model.forward).parameters
        argument = next((name for name in MASK_ARGUMENTS if name in names), None)
        if argument is None:
            raise TypeError(
                f"{type(model).__name__} takes neither {' nor '.join(MASK_ARGUMENTS)}: it is no "
                "masked image model"
            )
        self.argument = argument
        self.is_mae = argument == "noise"
        self.patch_size = _square(model.config.patch_size)
        self.masking = masking and masking.with_encoder(partial(patch_tokens, model))
        self.replace_masks = replace_masks
        self.values: dict[str, Tensor] = {}
        self.images: Tensor | None = None
        self.mask: Tensor | None = None
        self.tokens: Tensor | None = None

    def __repr__(self) -> str:
        return f"masking={self.masking}, replace_masks={self.replace_masks}"

    def before(
        self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Draw the masks, unless the model is to encode whole images."""
        self.images = self.mask = self.tokens = None
        bound = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
        arguments = {**bound, **bound.pop("kwargs", {})}
        del arguments["self"]
        self.images, given = arguments["pixel_values"], arguments.get(self.argument)
        masking = self.masking
        if not (model.training or (self.is_mae and given is None)):
            masking = None
        if masking is not None and given is not None and not self.replace_masks:
            raise TypeError(
                f"{self.argument} is given and masks are to be drawn by {masking}: leave one "
                "of them out, or set replace_masks=True"
            )
        if masking is not None:
            ratio = getattr(model.config, "mask_ratio", masking.mask_ratio)
            if ratio is None:
                ratio = SIMMIM_RATIO if given is None else _ratio(given)
            mask = masking(self.images, mask_ratio=ratio, patch_size=self.patch_size)
            arguments["pixel_values"] = self.images.repeat(masking.num_masks, 1, 1, 1)
            # Sorting the ranks of the patches gives the mask's own order.
            given = mask.ids_restore.float() if self.is_mae else mask.mask
        elif given is None and self.is_mae and hasattr(model, "regularizers"):
            # As the model draws it; the terms have to know the mask.
            patches = self.images[0, 0].numel() // self.patch_size**2
            given = torch.rand(len(self.images), patches, device=self.images.device)
        if given is not None:
            arguments[self.argument] = given
            if self.is_mae:
                ranks = given.argsort(dim=1).argsort(dim=1)
                self.mask = ranks >= int(given.shape[1] * (1 - model.config.mask_ratio))
            else:
                self.mask = given.flatten(1).bool()
        return (), arguments

    def after_encoder(self, encoder: nn.Module, args: Any, output: Any) -> None:
        """Note the encoder's tokens."""
        self.tokens = output[0]

    def after(self, model: PreTrainedModel, args: Any, output: Any) -> Any:
        """Add the terms to the loss of a training step."""
        tokens, images, mask = self.tokens, self.images, self.mask
        self.tokens = self.images = self.mask = None
        is_training = model.training and torch.is_grad_enabled()
        terms: Any = model.regularizers
        if not is_training or not any(term.weight for term in terms.values()):
            return output
        if tokens is None or images is None or mask is None:
            raise RuntimeError(
                f"regularizers need the encoding of masked images in each training step of "
                f"{type(model).__name__}: give it {self.argument}, or wrap it with masking="
            )
        num_masks = len(tokens) // len(images)
        patches = mask.shape[1]
        # MAE's encoder sees the visible patches only, the others all of them.
        seen = int(patches * (1 - model.config.mask_ratio)) if self.is_mae else patches
        prefix = tokens.shape[1] - seen
        if prefix < 0:
            raise TypeError(
                f"regularizers need one token per patch, got {tokens.shape[1]} tokens for "
                f"{patches} patches from {type(model).__name__}"
            )
        step = Step(tokens, images=images, mask=mask, num_masks=num_masks, num_prefix_tokens=prefix)
        losses = term_losses(terms, step)
        self.values = {name: value.detach() for name, value in losses.items()}
        total = sum(value for name, value in losses.items() if name.startswith("loss_"))
        if isinstance(output, tuple):
            return (output[0] + total, *output[1:])
        output["loss"] = output["loss"] + total
        return output


def _ratio(mask: Tensor) -> float:
    """The ratio that leaves as many patches as masks ``(B, N)`` do, in the mean."""
    kept = round((1 - mask.float().mean().item()) * mask[0].numel())
    return 1 - (kept + 0.5) / mask[0].numel()  # the half, as counts are rounded down


@torch.compiler.disable
def patch_tokens(model: PreTrainedModel, images: Tensor) -> Tensor:
    """``(B, N, D)`` tokens of the patches of whole images, without a trace in ``model``."""
    encoder: Any = model.base_model
    config, side = model.config, _square(model.config.patch_size)
    patches = (images.shape[-2] // side) * (images.shape[-1] // side)
    whole, ratio = {}, getattr(config, "mask_ratio", None)
    if "noise" in inspect.signature(encoder.forward).parameters:
        # MAE's encoder knows no other way to keep all patches, in their own order.
        whole["noise"] = torch.arange(patches, device=images.device).expand(len(images), -1)
        config.mask_ratio = 0.0
    try:
        with glancing(encoder, images):
            tokens = encoder(images, **whole)[0]
    finally:
        if ratio is not None:
            config.mask_ratio = ratio
    # Swin's are fewer than the patches, and none of them a prefix.
    return tokens[:, max(tokens.shape[1] - patches, 0) :]


def _square(patch_size: Any) -> int:
    sides = set(patch_size) if isinstance(patch_size, (list, tuple)) else {patch_size}
    if len(sides) != 1:
        raise ValueError(f"the model's patches must be square, got patch_size={patch_size}")
    return int(sides.pop())
