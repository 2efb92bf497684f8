"""The masks that reach the encoder of an unmodified module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from torch import Tensor, nn

from .._observe import glancing


class Encoding(NamedTuple):
    """What an encoder was given with a mask, and what its watched method returned."""

    encoder: MaskedVisionTransformer
    images: Tensor  # (B, C, H, W)
    removed: Tensor  # (B, N) bool, True = removed
    idx_mask: Tensor | None  # as the encoder was given it
    idx_keep: Tensor | None
    tokens: Tensor


class MaskWatch:
    """Stands in for a method of an encoder and reports the masks it is given.

    lightly hands masks to ``encode``, a method, out of reach of forward hooks; every
    ``encode`` calls ``preprocess``. The stand-in is an attribute of the instance: nothing
    random is drawn, the ``state_dict`` stays, and copies and pickles take it along.

    Args:
        encoder: Of lightly.
        seen: Called whenever the encoder is given a mask.
        method: ``"preprocess"`` or ``"encode"``.
    """

    def __init__(
        self,
        encoder: MaskedVisionTransformer,
        seen: Callable[[Encoding], Any],
        method: str = "preprocess",
    ) -> None:
        self.encoder, self.seen, self.method = encoder, seen, method
        self.before = vars(encoder).get(method)  # None: the class's
        setattr(encoder, method, self)

    def __call__(
        self,
        images: Tensor,
        idx_mask: Tensor | None = None,
        idx_keep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        stock = self.before or partial(getattr(type(self.encoder), self.method), self.encoder)
        tokens = stock(images, idx_mask=idx_mask, idx_keep=idx_keep, mask=mask)
        if any(given is not None for given in (idx_mask, idx_keep, mask)):
            removed = removed_patches(self.encoder, len(images), idx_mask, idx_keep, mask)
            self.seen(Encoding(self.encoder, images, removed, idx_mask, idx_keep, tokens))
        return tokens

    def remove(self) -> None:
        """Give the encoder back what was there before; watches may go in any order."""
        outer = getattr(self.encoder, self.method)
        if outer is not self:
            while outer.before is not self:
                outer = outer.before
            outer.before = self.before
        elif self.before is None:
            delattr(self.encoder, self.method)
        else:
            setattr(self.encoder, self.method, self.before)


@contextmanager
def watching(
    encoders: Iterable[MaskedVisionTransformer],
    seen: Callable[[Encoding], Any],
    method: str = "preprocess",
) -> Iterator[None]:
    """A :class:`MaskWatch` of each encoder."""
    watches = [MaskWatch(encoder, seen, method) for encoder in encoders]
    try:
        yield
    finally:
        for watch in watches:
            watch.remove()


def removed_patches(
    encoder: MaskedVisionTransformer,
    batch: int,
    idx_mask: Tensor | None = None,
    idx_keep: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``(B, N)`` bool, True = removed, from any of the three ways to tell lightly's encoders."""
    length = encoder.sequence_length
    prefix = prefix_tokens(encoder)
    if mask is not None:
        removed = mask.flatten(1).bool()
        return removed[:, prefix:] if removed.shape[1] == length else removed
    index = idx_keep if idx_mask is None else idx_mask
    assert index is not None
    keeps = idx_mask is None
    removed = torch.full((batch, length), keeps, device=index.device)
    return removed.scatter(1, index, not keeps)[:, prefix:]


def prefix_tokens(encoder: Any) -> int:
    """Tokens before the patches: timm's ViT says how many, torchvision's has one."""
    return getattr(encoder.vit, "num_prefix_tokens", 1)


def has_class_token(encoder: Any) -> bool:
    """Whether the first token is a [CLS]; timm's ViT may have registers without one."""
    return getattr(encoder.vit, "has_class_token", True)


def final_norm(encoder: Any) -> nn.Module | None:
    """The last norm of timm's or torchvision's ViT, None if it has none."""
    norm = encoder.vit.encoder.ln if hasattr(encoder.vit, "encoder") else encoder.vit.norm
    return None if isinstance(norm, nn.Identity) else norm


def encoders(
    model: nn.Module, user: str = "wrap(regularizers=...)"
) -> list[MaskedVisionTransformer]:
    """lightly's encoders in ``model``, which ``user`` needs.

    Raises:
        TypeError: If there is none.
    """
    found = [m for m in model.modules() if isinstance(m, MaskedVisionTransformer)]
    if not found:
        raise TypeError(
            f"{type(model).__name__} has no MaskedVisionTransformer of lightly whose masks could "
            f"be seen: {user} needs one"
        )
    return found


def encoder_of_whole_images(model: nn.Module) -> MaskedVisionTransformer:
    """The one encoder of ``model``; of several the one that gets no gradient, the teacher.

    Raises:
        TypeError: If there is none.
        ValueError: If several might be meant.
    """
    every = encoders(model, "DPPMasking(features='encoder')")
    teachers = [e for e in every if not any(p.requires_grad for p in e.parameters())]
    found = every if len(every) == 1 else teachers
    if len(found) != 1:
        raise ValueError(
            f"features='encoder' must mean one encoder: {type(model).__name__} has {len(every)} "
            f"MaskedVisionTransformers, {len(teachers)} of them without gradient; give features= "
            "a function from images to the patch tokens (B, N, D) of the one you mean"
        )
    return found[0]


@torch.compiler.disable
def patch_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """``(B, N, D)`` tokens of the patches of whole images, without a trace in ``model``."""
    encoder = encoder_of_whole_images(model)
    with glancing(encoder, images):
        return encoder.encode(images)[:, prefix_tokens(encoder) :]
