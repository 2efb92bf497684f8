"""Terms on the encoder's output of an unmodified LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ...regularizers import Step, named_terms, term_losses
from ..watch import Encoding, encoders, final_norm, has_class_token, prefix_tokens


def set_terms(model: LightningModule, regularizers: Sequence[nn.Module]) -> None:
    """Make them ``model.regularizers``, so that they are moved, saved and resumed with it.

    Raises:
        TypeError: If ``model`` has no encoder of lightly's, or one of them is no term.
        ValueError: If they do not fit each other or the encoder, or ``model`` has some already
            or optimizes manually.
    """
    found = encoders(model)  # fails here rather than in the first step
    terms = named_terms(regularizers, class_token=all(map(has_class_token, found)))
    if not model.automatic_optimization:
        raise ValueError(
            f"{type(model).__name__} optimizes manually: its loss is out of reach; call the "
            "regularizers in its training step"
        )
    if hasattr(model, "regularizers"):
        raise ValueError(f"{type(model).__name__} has an attribute regularizers already")
    model.regularizers = terms


def add_terms(model: Any, output: Any, record: list[Encoding], num_masks: int) -> Any:
    """The stock step's output with all terms in its loss; each is logged.

    Args:
        model: The module.
        output: Of its stock step.
        record: The encodings of masked images in this step.
        num_masks: Per image.
    """
    if output is None or not any(term.weight for term in model.regularizers.values()):
        return output  # without a loss the step skips this batch
    record = [each for each in record if each.tokens.requires_grad]
    if len(record) != 1:
        raise RuntimeError(
            f"regularizers need one encoding of masked images in each training step, got "
            f"{len(record)}"
        )
    (seen,) = record
    rows = len(seen.images)
    step = Step(
        _in_order(seen),
        images=seen.images[: rows // num_masks],
        mask=seen.removed,
        num_masks=num_masks,
        num_prefix_tokens=prefix_tokens(seen.encoder),
        class_token=has_class_token(seen.encoder),
        final_norm=final_norm(seen.encoder),
    )
    losses = term_losses(model.regularizers, step)
    for name, value in losses.items():
        model.log(name, value.detach(), sync_dist=True, batch_size=rows)
    total = sum(value for name, value in losses.items() if name.startswith("loss_"))
    if isinstance(output, dict):
        return {**output, "loss": output["loss"] + total}
    return output + total


def add_parameters(model: Any, configured: Any) -> None:
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


def _in_order(seen: Encoding) -> Tensor:
    """Tokens with the prefix tokens first, whatever the order of ``idx_keep``.

    lightly's mask functions keep token 0 in its place, and shuffle or drop others of several
    prefix tokens (registers) with the patches. All then go to their places in the sequence.
    """
    if seen.idx_keep is None or prefix_tokens(seen.encoder) < 2:
        return seen.tokens
    batch, _, dim = seen.tokens.shape
    whole = seen.tokens.new_zeros(batch, seen.encoder.sequence_length, dim)
    return whole.scatter(1, seen.idx_keep[:, :, None].expand(-1, -1, dim), seen.tokens)


def _first_optimizer(configured: Any) -> torch.optim.Optimizer | None:
    """The first one in what ``configure_optimizers`` returned."""
    if isinstance(configured, torch.optim.Optimizer):
        return configured
    if isinstance(configured, dict):
        return _first_optimizer(configured.get("optimizer"))
    if isinstance(configured, (list, tuple)) and configured:
        return _first_optimizer(configured[0])
    return None
