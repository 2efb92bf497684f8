"""Terms on the encoder's output of an unmodified LightningModule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ...regularizers import Step, named_terms, term_losses
from ..watch import encoders, final_norm, has_class_token, prefix_tokens, removed_patches


class Regularization:
    """The ``regularizers`` of one wrapped module.

    Those with weights become ``model.regularizers``, so that they are moved, saved and
    resumed with the module.
    """

    def __init__(self, model: LightningModule, regularizers: Sequence[nn.Module]) -> None:
        found = encoders(model)  # fails here rather than in the first step
        terms = named_terms(regularizers, class_token=all(map(has_class_token, found)))
        if hasattr(model, "regularizers"):
            raise ValueError(f"{type(model).__name__} has an attribute regularizers already")
        self.names = list(terms)
        model.regularizers = terms

    def __repr__(self) -> str:
        return str(self.names)

    @contextmanager
    def recording(self, model: LightningModule) -> Iterator[list[dict[str, Any]]]:
        """Note what the encoder returns for masked images, and what it was given."""
        record: list[dict[str, Any]] = []

        def recorded(encoder: Any) -> Any:
            stock = encoder.encode

            def encode(
                images: Tensor,
                idx_mask: Tensor | None = None,
                idx_keep: Tensor | None = None,
                mask: Tensor | None = None,
            ) -> Tensor:
                tokens = stock(images, idx_mask=idx_mask, idx_keep=idx_keep, mask=mask)
                masked = any(given is not None for given in (idx_mask, idx_keep, mask))
                if masked and tokens.requires_grad:
                    record.append(
                        {
                            "tokens": _in_order(tokens, idx_keep, encoder),
                            "images": images,
                            "mask": removed_patches(encoder, len(images), idx_mask, idx_keep, mask),
                            "num_prefix_tokens": prefix_tokens(encoder),
                            "class_token": has_class_token(encoder),
                            "final_norm": final_norm(encoder),
                        }
                    )
                return tokens

            return encode

        found: list[Any] = encoders(model)
        before = [vars(encoder).get("encode") for encoder in found]
        for encoder in found:
            encoder.encode = recorded(encoder)
        try:
            yield record
        finally:
            for encoder, own in zip(found, before, strict=True):
                if own is None:
                    del encoder.encode  # the instance's; the class has the stock one
                else:
                    encoder.encode = own

    def add_terms(
        self, model: Any, output: Any, record: list[dict[str, Any]], num_masks: int
    ) -> Any:
        """The stock step's output with all terms in its loss; each is logged."""
        if not any(term.weight for term in model.regularizers.values()):
            return output
        if len(record) != 1:
            raise RuntimeError(
                f"regularizers need one encoding of masked images in each training step, got "
                f"{len(record)}"
            )
        images = record[0].pop("images")
        rows = len(images)
        step = Step(images=images[: rows // num_masks], num_masks=num_masks, **record[0])
        losses = term_losses(model.regularizers, step)
        for name, value in losses.items():
            model.log(name, value.detach(), sync_dist=True, batch_size=rows)
        total = sum(value for name, value in losses.items() if name.startswith("loss_"))
        if isinstance(output, dict):
            return {**output, "loss": output["loss"] + total}
        return output + total

    def add_parameters(self, model: Any, configured: Any) -> None:
        """Let the stock module's first optimizer train the regularizers' weights too.

        In its first group of parameters, with that one's learning rate and weight decay.
        """
        parameters = list(model.regularizers.parameters())
        optimizer = _first_optimizer(configured)
        if not parameters or optimizer is None:
            return
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if all(id(p) in known for p in parameters):
            return  # the module handed over all its parameters
        # Not a group of their own: schedulers have counted the groups.
        optimizer.param_groups[0]["params"].extend(parameters)


def _in_order(tokens: Tensor, idx_keep: Tensor | None, encoder: Any) -> Tensor:
    """Tokens with the prefix tokens first, whatever the order of ``idx_keep``.

    lightly's mask functions keep token 0 in its place, and shuffle or drop others of several
    prefix tokens (registers) with the patches. All then go to their places in the sequence.
    """
    if idx_keep is None or prefix_tokens(encoder) < 2:
        return tokens
    batch, _, dim = tokens.shape
    whole = tokens.new_zeros(batch, encoder.sequence_length, dim)
    return whole.scatter(1, idx_keep[:, :, None].expand(-1, -1, dim), tokens)


def _first_optimizer(configured: Any) -> torch.optim.Optimizer | None:
    """The first one in what ``configure_optimizers`` returned."""
    if isinstance(configured, torch.optim.Optimizer):
        return configured
    if isinstance(configured, dict):
        return _first_optimizer(configured.get("optimizer"))
    if isinstance(configured, (list, tuple)) and configured:
        return _first_optimizer(configured[0])
    return None
