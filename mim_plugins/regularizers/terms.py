"""Several regularizers on one step: their names, and what they add to the loss."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn


def named_terms(regularizers: Sequence[nn.Module]) -> nn.ModuleDict:
    """Regularizers under the names they are logged by.

    ``UniformityLoss`` and ``UniformityHead`` become ``uniformity``, ``MutualInformationLoss``
    becomes ``mutual_information``.

    Raises:
        TypeError: If one of them is no module or has no ``weight``.
        ValueError: If two have the same name.
    """
    names = []
    for term in regularizers:
        if not isinstance(term, nn.Module) or not hasattr(term, "weight"):
            raise TypeError(f"regularizers must be modules with a weight, got {term!r}")
        name = re.sub(r"(Head|Loss)$", "", type(term).__name__)
        names.append(re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
    if len(set(names)) < len(names):
        raise ValueError(f"regularizers must be of different types, got {names}")
    return nn.ModuleDict(dict(zip(names, regularizers, strict=True)))


def term_losses(terms: nn.ModuleDict, latent: Tensor, **step: object) -> dict[str, Tensor]:
    """What each term of nonzero ``weight`` says of a step.

    Args:
        terms: From :func:`named_terms`. Each is called as ``term(latent, **step)``, with
            ``separate=True`` if it has a method ``terms``, and returns a scalar, or a dict of
            scalars, of which those named ``value_...`` are to be logged but not added to the
            loss.
        latent: ``(M * B, P + K, D)``, the encoder's output for M masks of B images.
        **step: ``images`` ``(B, C, H, W)``; ``mask`` ``(M * B, N)`` or ``(M * B, H, W)``, 1 =
            removed; ``num_masks``, M; in mmpretrain also ``prediction``, the decoder's output.

    Returns:
        ``loss_<name>``, ``loss_<name>_<key>`` and ``<name>_<key>`` (of ``value_<key>``).
    """
    losses: dict[str, Tensor] = {}
    for name, term in terms.items():
        if not term.weight:
            continue
        # Called as a module, so that what wraps it (FSDP gathers its weights) sees the call.
        separate = {"separate": True} if hasattr(term, "terms") else {}
        value = term(latent, **separate, **step)
        for key, part in (value if isinstance(value, dict) else {"": value}).items():
            prefix = "" if key.startswith("value_") else "loss_"
            key = key.removeprefix("value_")
            losses[prefix + "_".join(filter(None, (name, key)))] = part
    return losses
