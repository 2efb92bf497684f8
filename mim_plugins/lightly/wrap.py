"""Plugins on unmodified LightningModules.

The steps of the instance are run with other mask functions in the place of lightly's, or terms
are added to their loss. The class stays as it is, lightly's functions are exchanged for the time
of a step and for its thread only, and the ``state_dict`` has nothing more than the weights of
regularizers that have some, under ``regularizers.``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from .._check import check_list, check_weight
from ..masking import Masking
from ..masking.base import agree
from ..mixing import EraseMask, MixMask, UnMix
from .batch import Getter, check_getter, repeat_batch
from .draws import MASK_FUNCTIONS, calls_mask_functions, drawing, find_mask_functions
from .mixing.mixing import Mixing
from .regularizers.regularize import add_parameters, add_terms, set_terms
from .watch import Encoding, encoder_of_whole_images, encoders, patch_tokens, watching

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def wrap(
    model: LightningModule,
    *,
    masking: Masking | Getter | None = None,
    regularizers: Sequence[nn.Module] = (),
    mixing: MixMask | EraseMask | None = None,
    unmix: UnMix | None = None,
    mask_ratio_var: float | None = None,
    images: Getter | None = None,
) -> Any:
    """Give a stock module another masking, terms in its loss, or mixed views.

    With ``masking``, lightly's mask functions ``random_token_mask`` (MAE, SimMIM),
    ``random_grid_token_mask`` (Pixio), ``random_inverse_block_mask`` (CAPI) and
    ``random_block_mask`` (iBOT, DINOv2) return masks for the images of the current batch
    while a step of the module runs. The ratio and the masking unit are those of the module's
    call. The images are those of the first views that are as many and as large as the call
    asks for; in the first step the module's encoder is watched, and if it encodes others, or
    with other masks, the step raises. A masking that draws several masks per image
    (``ComplementaryMasking``) gets the training batch repeated as often. Steps of validation
    and test get masks too, one per image, and nothing is added to their loss.

    With ``regularizers``, each term is called on the output of the module's encoder, a
    ``MaskedVisionTransformer`` of lightly, logged as ``loss_<name>`` and added to the loss.

    With ``mixing`` or ``unmix``, for siamese modules (MoCo, BYOL, SimCLR, SimSiam and others of
    their shape): the queries are repeated on mixed views, and the two terms of MixMask's Eq. 4
    are added to the loss, with the weight that the step gives to its own, and logged. The keys
    are those of the unmixed views; queue and momentum encoder are updated once. MoCo mixes its
    query view; BYOL and SimSiam both views, on the side of the predictor; SimCLR both views,
    each compared with the other one unmixed. See :mod:`mim_plugins.lightly.mixing.mixing`.

    A wrapped module may be wrapped again with what it does not have yet.

    Args:
        model: An instance of an unmodified module. It is changed in place.
        masking: The mask generator, e.g. ``DPPMasking(tau=0.5)``; or, for masks that come with
            the data, where in a batch they are: a key, an index or a function of it, to a
            :class:`PatchMask` or masks ``(B, N)`` or ``(B, rows, columns)``, True = removed,
            equally many in each image.
            Default: the module's own masks.
        regularizers: Terms of different types, e.g. ``[UniformityLoss(weight=0.01)]``; one of
            weight 0 is left out. Default: none.
        mixing: ``MixMask(...)``, or ``EraseMask(...)`` for the erasing baseline. Beside
            ``unmix``, MixMask takes another permutation than it. Default: none.
        unmix: ``UnMix(...)``. Default: none.
        mask_ratio_var: For ``random_block_mask`` and a masking with a ``mask_ratio`` of its
            own: the ratio of each image is drawn from that plus or minus this. Default (None):
            0.05 (DPPMask, table 8). Without a ratio of its own, the call's range of ratios.
        images: Where in a batch the views to be masked are: a key, an index or a function of
            the batch. Default (None): in a list, tuple or named tuple the first entry, in a
            dict ``image``, ``images`` or the like, else the batch itself.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If an argument has the wrong type, the module never calls one of lightly's
            mask functions (``masking``), has no encoder of lightly's (``regularizers``), or no
            module named ``criterion`` (``mixing``, ``unmix``).
        ValueError: If the same is given twice, ``model`` has another mask ratio or patch size
            than ``masking`` itself, optimizes manually (``regularizers``, ``mixing``,
            ``unmix``), has steps beside those of its class, or nothing is to be added to it.

    Example:
        >>> model = wrap(MAE(), masking=DPPMasking(tau=0.5))  # doctest: +SKIP
        >>> Trainer().fit(model, dataloader)  # doctest: +SKIP
    """
    if not isinstance(model, LightningModule):
        raise TypeError(
            "model must be a pytorch_lightning.LightningModule, as lightly's are (wrap it before "
            f"torch.compile), got {type(model).__module__}.{type(model).__name__}"
        )
    given = {
        "masking": masking,
        "regularizers": check_list("regularizers", regularizers) or None,
        "mixing": mixing,
        "unmix": unmix,
        "mask_ratio_var": mask_ratio_var,
        "images": images,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not given.keys() - {"mask_ratio_var", "images"}:
        raise ValueError("wrap() needs masking, regularizers, mixing or unmix, got None")
    plugin = getattr(model, "_mim_plugin", None) or Plugin(model)
    plugin.add(model, **given)
    return model


class Plugin:
    """What one wrapped module does in its steps; nothing of it changes from step to step.

    The module has its steps as attributes, which call those of its class.
    """

    masking: Masking | Getter | None
    mask_ratio_var: float
    images: Getter | None
    mixing: Mixing | None

    def __init__(self, model: LightningModule) -> None:
        self.given: dict[str, Any] = {}
        self.checked: set[str] = set()  # steps whose first run has shown that their masks fit
        names = [n for n in STEPS if getattr(type(model), n) is not getattr(LightningModule, n)]
        names += ["configure_optimizers", "extra_repr"]
        own = [name for name in names if name in vars(model)]
        if own:
            raise ValueError(
                f"model has its own {', '.join(own)} beside those of {type(model).__name__}: wrap "
                "it before these are set"
            )
        self.names = names

    def add(self, model: Any, **given: Any) -> None:
        """Take what :func:`wrap` was given for ``model``; a fault leaves both as they were."""
        for name in given.keys() & self.given.keys():
            raise ValueError(f"model is wrapped already, with {name}={self.given[name]}")
        both = self.given | given
        images = check_getter("images", both.get("images"))
        variation = check_weight("mask_ratio_var", both.get("mask_ratio_var", 0.05))
        masking, mixed = both.get("masking"), both.keys() & {"mixing", "unmix"}
        suited = masking if masking is None else _of_model(masking, model)
        if mixed and getattr(masking, "num_masks", 1) > 1:
            raise ValueError(
                f"mixing and unmix compare each image with all others, so that {masking} with "
                "several masks per image cannot stand beside them"
            )
        mixing = Mixing(model, both.get("mixing"), both.get("unmix")) if mixed else None
        if "regularizers" in given:
            set_terms(model, given["regularizers"])
        self.given, self.masking, self.mixing = both, suited, mixing
        self.images, self.mask_ratio_var = images, variation
        find_mask_functions.cache_clear()
        model._mim_plugin = self
        for name in self.names:
            function = {"configure_optimizers": _configure_optimizers, "extra_repr": _extra_repr}
            bound = partial(function.get(name, _step), model, self, name)
            bound.__wrapped__ = getattr(type(model), name)  # type: ignore[attr-defined] # Lightning reads its signature
            setattr(model, name, bound)

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.given.items())


# Left out of graphs of torch.compile, unlike the stock step that it calls.
_eager = torch.compiler.disable(recursive=False)


@_eager
def _step(model: Any, plugin: Plugin, name: str, *args: Any, **kwargs: Any) -> Any:
    """The step ``name`` of ``model``'s class, with all that ``plugin`` adds to it."""
    stock = getattr(type(model), name)
    training = name == "training_step" and torch.is_grad_enabled()  # not of a validation step
    batch, *rest = args if args else (kwargs.pop("batch"),)
    copies = getattr(plugin.masking, "num_masks", 1) if training else 1
    if copies > 1:
        batch = repeat_batch(batch, copies)

    @_eager
    def masked(batch: Any, *args: Any, **kwargs: Any) -> Any:
        with drawing(model, plugin, name, batch, copies) as draws:
            output = stock(model, batch, *args, **kwargs)
            if draws is not None and training and output is None:
                draws.is_skipped = model.automatic_optimization
            return output

    @_eager
    def regularized(batch: Any, *args: Any, **kwargs: Any) -> Any:
        record: list[Encoding] = []
        with watching(encoders(model), record.append, "encode"):
            output = masked(batch, *args, **kwargs)
        return add_terms(model, output, record, copies)

    if not training:
        return masked(batch, *rest, **kwargs)
    first = regularized if "regularizers" in plugin.given else masked
    if plugin.mixing is None:
        return first(batch, *rest, **kwargs)
    runs = chain([first], repeat(masked))  # terms once, not on the mixed views
    return plugin.mixing.step(
        model, lambda *args, **kwargs: next(runs)(*args, **kwargs), batch, *rest, **kwargs
    )


def _configure_optimizers(model: Any, plugin: Plugin, name: str) -> Any:
    configured = type(model).configure_optimizers(model)
    if "regularizers" in plugin.given:
        add_parameters(model, configured)
    return configured


def _extra_repr(model: Any, plugin: Plugin, name: str) -> str:
    stock = type(model).extra_repr(model)
    return f"{stock}{', ' if stock else ''}mim_plugins: {plugin}"


def _of_model(masking: Masking | Getter, model: LightningModule) -> Masking | Getter:
    """``masking``, which may compare patches by the tokens of ``model``, if it suits it."""
    suited = masking
    if isinstance(masking, Masking):
        for name in ("mask_ratio", "patch_size"):
            agree(name, getattr(masking, name), getattr(model, name, None))
        suited = masking.with_encoder(partial(patch_tokens, model))
        if suited is not masking:
            encoder_of_whole_images(model)  # fails here rather than in the first step
    elif not isinstance(masking, (str, int)) and not callable(masking):
        raise TypeError(
            "masking must be a mim_plugins.masking.Masking, or a key, an index or a function of "
            f"the batch for masks in it, got {masking!r}"
        )
    if not calls_mask_functions(type(model)):
        raise TypeError(
            f"{type(model).__name__} calls none of {', '.join(MASK_FUNCTIONS)} of "
            "lightly.models.utils in any of its methods"
        )
    return suited
