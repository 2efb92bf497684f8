"""What a training step gives to the terms of its loss, and what a term is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._check import check_bool, check_choice, check_int, check_weight
from .._pool import pool


@dataclass(frozen=True)
class Step:
    """The encoder's output in a training step, for M masks of each of B images.

    Rows are mask by mask: row ``m * B + b`` is image b under mask m.

    Attributes:
        tokens: ``(M * B, P + K, D)``, P prefix tokens, [CLS] first, then K patch tokens: the
            visible ones, or all N if the encoder sees the removed patches too (SimMIM). Or
            ``(M * B, D)``, one feature per row.
        images: ``(B, C, H, W)``, as the encoder got them.
        mask: ``(M * B, N)`` or ``(M * B, rows, columns)``, True or 1 = removed.
        prediction: What the decoder returns, where the framework shows it (mmpretrain).
        num_masks: M. Default: 1.
        num_prefix_tokens: P. Default: 1.
        class_token: Whether the first prefix token is a [CLS]. Default: True.
        final_norm: The encoder's last norm, which ``tokens`` have passed.

    Raises:
        TypeError: If ``tokens`` is no tensor, or a number no int.
        ValueError: If ``tokens`` has another shape.
    """

    tokens: Tensor
    images: Tensor | None = None
    mask: Tensor | None = None
    prediction: Tensor | None = None
    num_masks: int = 1
    num_prefix_tokens: int = 1
    class_token: bool = True
    final_norm: nn.Module | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Tensor):
            raise TypeError(f"tokens must be a tensor, got {type(self.tokens).__name__}")
        check_int("num_masks", self.num_masks)
        check_int("num_prefix_tokens", self.num_prefix_tokens, 0)
        if self.tokens.ndim not in (2, 3) or len(self.tokens) % self.num_masks:
            raise ValueError(
                f"tokens must have shape ({self.num_masks} * B, P + K, D) or "
                f"({self.num_masks} * B, D), got {tuple(self.tokens.shape)}"
            )

    @property
    def sees_removed(self) -> bool:
        """Whether the removed patches are among the tokens."""
        if self.mask is None or self.tokens.ndim == 2:
            return False
        return self.tokens.shape[1] - self.num_prefix_tokens >= self.mask[0].numel()

    def pooled(self, token: str) -> Tensor:
        """``(M * B, D)`` float32: [CLS] (``"cls"``), or the mean of visible patches (``"mean"``).

        Raises:
            ValueError: If ``token`` is neither, or ``"cls"`` and there is none.
        """
        check_choice("token", token, ("cls", "mean"))
        if token == "cls" and self.tokens.ndim == 3 and not self.class_token:
            raise ValueError("token='cls' needs an encoder with [CLS]; use token='mean'")
        mask = self.mask if self.sees_removed and token == "mean" else None
        return pool(self.tokens, token, self.num_prefix_tokens, mask)


class Term(nn.Module):
    """A term of a loss: a formula, a weight and the name that it is logged by.

    A subclass sets ``name`` and writes :meth:`formula`. It then works in
    ``regularizers=[...]`` of both frameworks, and alone: called with the tokens.

    Args:
        weight: Factor of what is added to the loss, finite and at least 0; with 0 the term is
            left out. Default: 0.01.
        name: Another name, where a run has two terms of a class. Default: the class's.

    Raises:
        TypeError: If ``weight`` is no number.
        ValueError: If ``weight`` is out of range.
    """

    name: str

    def __init__(self, weight: float = 0.01, *, name: str | None = None) -> None:
        super().__init__()
        self.weight = check_weight("weight", weight)
        if name is not None:
            self.name = name
        _check_name(self)

    def formula(self, step: Step) -> Tensor | dict[str, Tensor]:
        """A scalar, or several by name, computed outside autocast.

        Those of a name that starts with ``loss`` are added to the loss, others are logged.
        """
        raise NotImplementedError

    def forward(self, step: Step | Tensor, **given: Any) -> Any:
        """What a step adds to the loss, weighted.

        Args:
            step: The step, or its tokens alone.
            **given: With tokens: the other attributes of :class:`Step`.

        Returns:
            Of a step what :meth:`formula` returns, times ``weight`` what is added to the loss.
            Of tokens the sum of what is added, a scalar.
        """
        if not isinstance(step, Step):
            losses = term_losses({self.name: self}, Step(step, **given))
            parts = [part for name, part in losses.items() if name.startswith("loss")]
            return torch.stack(parts).sum() if parts else (step * 0.0).sum()
        with torch.autocast(step.tokens.device.type, enabled=False):
            value = self.formula(step)
        if isinstance(value, Tensor):
            return self.weight * value
        return {k: self.weight * v if k.startswith("loss") else v for k, v in value.items()}

    def extra_repr(self) -> str:
        own = {"name": self.name, **vars(self)}
        shown = (k for k, v in own.items() if isinstance(v, (bool, int, float, str)))
        return ", ".join(f"{k}={own[k]!r}" for k in shown if k != "training" and k[0] != "_")


class FeatureTerm(Term):
    """A term on one feature per image. A subclass writes :meth:`of_features`.

    Args:
        weight: As of :class:`Term`. Default: 0.01.
        token: The feature is ``"cls"``, the first token, or ``"mean"``, the mean of the
            visible patch tokens. Default: ``"cls"``.
        gather_distributed: Take the images of all ranks, with gradient. Without effect in a
            single process. Default: True.
        name: As of :class:`Term`.

    Raises:
        TypeError: If ``weight`` is no number or ``gather_distributed`` no bool.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        weight: float = 0.01,
        *,
        token: str = "cls",
        gather_distributed: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name=name)
        self.token = check_choice("token", token, ("cls", "mean"))
        self.gather_distributed = check_bool("gather_distributed", gather_distributed)

    def of_features(self, features: Tensor) -> Tensor | dict[str, Tensor]:
        """The formula on ``(B, D)`` float32 features of different images."""
        raise NotImplementedError

    def features(self, step: Step) -> Tensor:
        """``(M * B, D)``, one feature per mask and image."""
        return step.pooled(self.token)

    def formula(self, step: Step) -> Tensor | dict[str, Tensor]:
        """The mean over the masks: one mask's features are of different images."""
        parts = self.features(step).chunk(step.num_masks)
        values: list[Any] = [self.of_features(part) for part in parts]
        if isinstance(values[0], Tensor):
            return torch.stack(values).mean()
        return {key: torch.stack([value[key] for value in values]).mean() for key in values[0]}


def in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in the dtype of its weights (pure half-precision training), as float32."""
    weight = next(module.parameters(), x)
    return module(x.to(weight.dtype)).float()


def _check_name(term: nn.Module) -> str:
    name = getattr(term, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"name of {type(term).__name__} must be a string, got {name!r}")
    if not name.isidentifier() or "loss" in name:
        # mmengine adds whatever has "loss" in its name.
        raise ValueError(f"name must be an identifier without 'loss' in it, got {name!r}")
    return name


def named_terms(regularizers: Sequence[nn.Module], *, class_token: bool = True) -> nn.ModuleDict:
    """Terms by the names they are logged by.

    Args:
        regularizers: Modules with ``name`` and ``weight`` that are called with a
            :class:`Step`, as :class:`Term`.
        class_token: Whether the encoder has a [CLS].

    Raises:
        TypeError: If one of them has no ``name`` or ``weight``.
        ValueError: If two have the same name, a name is none, or one has ``token='cls'`` and
            there is no [CLS].
    """
    terms: dict[str, nn.Module] = {}
    for term in regularizers:
        if not isinstance(term, nn.Module) or not hasattr(term, "weight"):
            raise TypeError(f"regularizers must be modules with a weight, got {term!r}")
        name = _check_name(term)
        if term.weight and getattr(term, "token", None) == "cls" and not class_token:
            raise ValueError(
                f"regularizer {name} has token='cls', but the encoder has no class token: use "
                "token='mean'"
            )
        if name in terms:
            raise ValueError(f"regularizers must have different names, got {name!r} twice")
        terms[name] = term
    return nn.ModuleDict(terms)


def term_losses(terms: Any, step: Step) -> dict[str, Tensor]:
    """What each term of nonzero ``weight`` says of a step.

    Args:
        terms: Terms by name, as from :func:`named_terms`.
        step: The step.

    Returns:
        ``loss_<name>`` of a term that returns a scalar. Of one that returns a dict
        ``loss_<name>_<key>`` for each ``loss_<key>``, and ``<name>_<key>``, to be logged
        only, for each other ``<key>``.

    Raises:
        ValueError: If another key has "loss" in it.
    """
    losses: dict[str, Tensor] = {}
    for name, term in terms.items():
        if not term.weight:
            continue
        # Called as a module, so that what wraps it (FSDP gathers its weights) sees the call.
        value = term(step)
        for key, part in (value if isinstance(value, dict) else {"loss": value}).items():
            if f"{key}_".startswith("loss_"):
                losses[f"loss_{name}{key.removeprefix('loss')}"] = part
            elif "loss" in key:
                raise ValueError(f"regularizer {name}: a key with 'loss' must start so, got {key}")
            else:
                losses[f"{name}_{key}"] = part
    return losses
