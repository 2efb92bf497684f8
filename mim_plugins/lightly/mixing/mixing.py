"""MixMask in lightly's siamese pipelines: a loss for any of its criteria, and unmodified modules.

The module's own training step runs twice. The first run, on the unmixed views, is the stock
step with all its effects; what its key branch returned and how it called its criterion is
noted. The second run repeats the queries on the mixed views: modules of the key branch return
what was noted, so that they see no mixed image and are updated once, and the run ends with
the last call of the criterion. The terms of Eq. 4 are then added to the loss with the weights
that the stock step gave to its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ...mixing import EraseMask, Mix, MixMask, UnMix, loss, mix_views
from ...mixing.loss import Criterion, check_scalar, mixture
from ...mixing.mixmask import combine


class MixMaskLoss(loss.MixMaskLoss):
    """L_orig + λ L_up + (1 - λ) L_down around a siamese loss of lightly (MixMask, Eqs. 4-6).

    For training loops that call the loss themselves. ``NTXentLoss`` with a memory bank
    enqueues the keys once, in L_orig, and all terms see the bank as it was before.

    Args:
        criterion: ``NTXentLoss``, ``NegativeCosineSimilarity`` or any callable of two
            ``(B, D)`` tensors that gives a scalar; see :class:`mim_plugins.loss.MixMaskLoss`.

    Raises:
        TypeError: If ``criterion`` is not callable.

    Example:
        >>> from lightly.loss import NTXentLoss
        >>> loss_fn = MixMaskLoss(NTXentLoss(memory_bank_size=(64, 4)))
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
        >>> images, key = torch.rand(8, 3, 32, 32), torch.rand(8, 4)
        >>> mix = MixMask()(images)
        >>> loss = loss_fn(encoder(images), key, (encoder(mix.images), mix))
    """

    def frozen(self) -> Criterion:
        return frozen(self.criterion)


def frozen(criterion: Any) -> Criterion:
    """``criterion`` with its memory bank, or any other buffers, as they are now at every call."""
    criterion = getattr(criterion, "_orig_mod", criterion)  # of torch.compile, which has no copy
    bank = getattr(criterion, "memory_bank", None)
    if not isinstance(bank, MemoryBankModule) or bank.bank.ndim < 2:
        return loss.frozen(criterion)
    # Cheaper than copying the bank for every term, enqueueing and throwing it away.
    still = copy.copy(criterion)
    still._modules = {**criterion._modules, "memory_bank": _StillBank(bank)}
    return still


class _StillBank(nn.Module):
    """The negatives of a memory bank at one moment."""

    def __init__(self, bank: MemoryBankModule) -> None:
        super().__init__()
        self.negatives = bank.bank.clone()
        if bank.feature_dim_first:
            self.negatives = self.negatives.transpose(0, -1)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor]:
        return output, self.negatives


class Mixing:
    """The mixers of one wrapped module, and its training step with them.

    Args:
        model: The module: its ``training_step`` compares projections by ``self.criterion``, a
            module called with two ``(B, D)`` tensors of which one or both need gradients.
        mixing: :class:`MixMask` or :class:`EraseMask`.
        unmix: :class:`UnMix`.

    Raises:
        TypeError: If ``mixing`` or ``unmix`` has the wrong type, or ``model`` has no criterion.
        ValueError: If ``model`` optimizes manually.
    """

    def __init__(
        self, model: LightningModule, mixing: MixMask | EraseMask | None, unmix: UnMix | None
    ) -> None:
        self.mixers = combine(mixing, unmix)
        if not isinstance(getattr(model, "criterion", None), nn.Module):
            raise TypeError(
                f"{type(model).__name__} has no module named criterion; mix in its training step "
                "with MixMask and MixMaskLoss"
            )
        if not model.automatic_optimization:
            raise ValueError(
                f"{type(model).__name__} optimizes manually: its loss is out of reach; mix in its "
                "training step with MixMask and MixMaskLoss"
            )

    def __repr__(self) -> str:
        return str(list(self.mixers))

    def step(
        self, model: LightningModule, stock_step: Any, batch: Any, *args: Any, **kw: Any
    ) -> Any:
        """The stock step's output with the terms of all mixers in its loss.

        Args:
            model: The module.
            stock_step: Its own ``training_step``.
            batch: ``batch[0]`` is a list of views ``(B, C, H, W)`` of equal shape.
            args, kw: What else ``stock_step`` takes.

        Raises:
            TypeError: If ``batch[0]`` is no list of views, or the criterion is not called with
                two tensors, or returns no scalar.
            ValueError: If the views differ in shape or hold a single image.
            RuntimeError: If the step cannot be repeated without repeating its effects.
        """
        if not isinstance(batch, (list, tuple)):
            raise TypeError(f"batch must be a list (views, ...), got {type(batch).__name__}")
        if not torch.is_grad_enabled():  # of a validation step
            return stock_step(batch, *args, **kw)
        before = frozen(model.criterion)  # every term sees the queue without this step's keys
        versions = _versions(model)
        with _recording(model) as record:
            output = stock_step(batch, *args, **kw)
        loss = output["loss"] if isinstance(output, dict) else output
        if loss is None:  # the step skips this batch
            return output
        record.check(model, versions)
        weights = torch.autograd.grad(
            loss, [call.loss for call in record.calls], retain_graph=True, allow_unused=True
        )
        total = loss
        for mixer in self.mixers:
            mix = mix_views(mixer, batch[0])
            replays = []
            for views in zip(*(view.views for view in mix), strict=True):
                with _replaying(model, record) as queries:
                    stock_step((list(views), *batch[1:]), *args, **kw)
                replays.append(queries)
            terms = [
                weight * call.mixture(before, queries, mix[0])
                for call, weight, *queries in zip(record.calls, weights, *replays, strict=True)
                if weight is not None
            ]
            term = torch.stack(terms).sum()
            name = f"loss_{type(mixer).__name__.lower()}"
            model.log(name, term.detach(), sync_dist=True, batch_size=len(batch[0][0]))
            total = total + term
        if isinstance(output, dict):
            return {**output, "loss": total}
        return total


@dataclass
class _Call:
    """One call of the criterion in the stock step."""

    tensors: list[Tensor]  # the two arguments
    keywords: tuple[str, ...]  # names of those given by keyword, the last ones
    loss: Tensor

    def mixture(self, criterion: Criterion, queries: Sequence[list[Tensor]], mix: Mix) -> Tensor:
        """Eq. 4. Both arguments are queries, and each other's keys, if both need gradients.

        Args:
            criterion: The criterion with the queue before this step.
            queries: For each of ``mix.views`` the arguments of the same call there.
            mix: The mix.
        """
        terms = []
        for place, tensor in enumerate(self.tensors):
            if not tensor.requires_grad:
                continue

            def compare(query: Tensor, key: Tensor, place: int = place) -> Tensor:
                pair = (query, key) if place == 0 else (key, query)
                given = 2 - len(self.keywords)
                named = zip(self.keywords, pair[given:], strict=True)
                return criterion(*pair[:given], **dict(named))

            mixed = [replay[place] for replay in queries]
            terms.append(mixture(compare, mixed, self.tensors[1 - place], mix))
        return sum(terms) / len(terms)


@dataclass
class _Record:
    """What happened in the stock step."""

    calls: list[_Call] = field(default_factory=list)
    keys: dict[nn.Module, list[Any]] = field(default_factory=dict)  # outputs, in order
    queries: set[nn.Module] = field(default_factory=set)  # called with gradients

    def check(self, model: LightningModule, versions: dict[str, tuple[int, int]]) -> None:
        """Raise if the queries could not be repeated alone.

        Args:
            model: The module after its step.
            versions: :func:`_versions` before it.
        """
        name = type(model).__name__
        if not self.calls:
            raise RuntimeError(f"the training step of {name} did not call self.criterion")
        if not all(call.loss.requires_grad for call in self.calls):
            raise RuntimeError(f"a wrapped {name} needs gradients in its training step")
        # A module that both branches share is run again; no step updates such a one.
        for module in self.queries & set(self.keys):
            del self.keys[module]
        hidden = {id(p) for module in self.keys for p in module.parameters()}
        now = _versions(model)
        for key, parameter in model.named_parameters():
            if now[key] != versions[key] and id(parameter) not in hidden:
                raise RuntimeError(
                    f"the training step of {name} updates {key}, which belongs to no module that "
                    "it calls without gradients, so it would be updated twice; mix in the step "
                    "itself with MixMask and MixMaskLoss"
                )


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """What changes when a parameter is written to; known without waiting for the device."""
    return {name: (p.data_ptr(), p._version) for name, p in model.named_parameters()}


class _End(Exception):
    """The criterion was called as often as in the stock step."""


@contextmanager
def _recording(model: LightningModule) -> Iterator[_Record]:
    """Note the calls of the criterion and of the modules of the key branch.

    A module is of the key branch if it is called without gradients or all its parameters are
    frozen. Only outermost calls count.
    """
    record = _Record()
    depth = 0  # of calls within the key branch

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth
        if depth or _is_key(module):
            depth += 1
        else:
            record.queries.add(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal depth
        if depth:
            depth -= 1
            if not depth:
                record.keys.setdefault(module, []).append(output)

    def compared(module: nn.Module, args: Any, kwargs: dict[str, Any], loss: Any) -> None:
        tensors, keywords = _arguments(args, kwargs)
        record.calls.append(_Call(tensors, keywords, check_scalar(loss)))

    hooks = [model.criterion.register_forward_hook(compared, with_kwargs=True)]
    for module in _callable_modules(model):
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _callable_modules(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` and its modules, but for those within a compiled one, which runs as a whole."""
    yield model
    if not _is_compiled(model):
        for child in model.children():
            yield from _callable_modules(child)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _is_key(module: nn.Module) -> bool:
    if not torch.is_grad_enabled():
        return True
    parameter = None
    for parameter in module.parameters():
        if parameter.requires_grad:
            return False
    return parameter is not None


def _arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Tensor], tuple[str, ...]]:
    values = [*args, *kwargs.values()]
    if len(values) != 2 or not all(isinstance(value, Tensor) for value in values):
        raise TypeError(
            f"criterion must be called with two tensors, got {[type(v).__name__ for v in values]}"
        )
    shapes = [tuple(value.shape) for value in values]
    if any(len(shape) != 2 for shape in shapes):
        raise TypeError(
            f"criterion must be called with projections (B, D), got tensors of {shapes}: mixing "
            "and unmix are for siamese modules"
        )
    return values, tuple(kwargs)


@contextmanager
def _replaying(model: LightningModule, record: _Record) -> Iterator[list[list[Tensor]]]:
    """Let the training step run for its queries alone, which are yielded, call by call."""
    queries: list[list[Tensor]] = []

    def compared(*args: Any, **kwargs: Any) -> Tensor:
        tensors, _ = _arguments(args, kwargs)
        queries.append(tensors)
        if len(queries) == len(record.calls):
            raise _End
        return record.calls[len(queries) - 1].loss

    stand_ins = {
        module: _StandIn(partial(_next, iter(outputs)), module)
        for module, outputs in record.keys.items()
    }
    stand_ins[model.criterion] = _StandIn(compared, model.criterion)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child in stand_ins
    ]
    names = ("log", "log_dict")
    own = {name: vars(model)[name] for name in names if name in vars(model)}
    try:
        for parent, name, child in places:
            parent._modules[name] = stand_ins[child]
        vars(model).update(dict.fromkeys(names, _ignore))
        try:
            yield queries
        except _End:
            return
        raise RuntimeError("the training step calls self.criterion a varying number of times")
    finally:
        for parent, name, child in places:
            parent._modules[name] = child
        for name in names:
            del vars(model)[name]
        vars(model).update(own)


class _StandIn(nn.Module):
    """Returns what it is told, and offers a momentum update something to write into."""

    def __init__(self, function: Any, module: nn.Module) -> None:
        super().__init__()
        self.function = function
        for number, value in enumerate(module.parameters()):
            scratch = nn.Parameter(torch.empty_like(value), value.requires_grad)
            self.register_parameter(f"parameter{number}", scratch)
        for number, buffer in enumerate(module.buffers()):
            self.register_buffer(f"buffer{number}", torch.empty_like(buffer))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _next(outputs: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
    return next(outputs)


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass
