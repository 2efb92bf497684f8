"""A siamese training step run again for its queries, on other views and without effects.

In the first run, the stock step with all its effects, it is noted what the key branch
returned and how the criterion was called. In a replay, modules of the key branch return what
was noted, so that they see no mixed image and are updated once, and the step ends with the
last call of the criterion. All else that the step changes (buffers, metrics, counters,
attributes; see :class:`.State`) starts a replay as it started the stock step, and is after it
as that left it. Statistics of the queries' batch norm see the mixed views, as those of any
further pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..._observe import exchanged
from ...mixing import Mix
from ...mixing.loss import Criterion, check_scalar, mixture
from ...mixing.state import State

OF_LIGHTNING = vars(LightningModule()).keys() - vars(nn.Module()).keys()


@dataclass
class Call:
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
        return torch.stack(terms).mean()


class Record:
    """A module before its stock step, what happens in it, and how to run it again.

    Args:
        model: The module.
        by_value: Compare parameters by value, too, which finds writes through ``.data``. Waits
            for the device.

    Attributes:
        calls: Of the criterion.
        keys: Modules of the key branch and what they returned, in order.
    """

    def __init__(self, model: LightningModule, by_value: bool) -> None:
        self.model = model
        self.by_value = by_value
        self.calls: list[Call] = []
        self.keys: dict[nn.Module, list[Any]] = {}
        self.queries: set[nn.Module] = set()  # called with gradients
        norms = {module for module in model.modules() if isinstance(module, _NormBase)}
        self.state = State(
            model, without=norms, names=OF_LIGHTNING, shared=[model._trainer, *norms]
        )
        self.versions = self._versions()

    def _versions(self) -> dict[str, tuple]:
        """What changes when a trained parameter is written to."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        sums: list[float] = [0.0] * len(trained)
        if self.by_value and trained:
            sums = torch.stack([p.detach().float().sum().cpu() for p in trained.values()]).tolist()
        return {
            name: (p.data_ptr(), p._version, number)
            for (name, p), number in zip(trained.items(), sums, strict=True)
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the calls of the criterion and of the modules of the key branch.

        A module is of the key branch if it is called without gradients or all its parameters
        are frozen. Only outermost calls count.
        """
        depth = 0  # of calls within the key branch

        def enter(module: nn.Module, args: Any) -> None:
            nonlocal depth
            if depth or _is_key(module):
                depth += 1
            else:
                self.queries.add(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal depth
            if depth:
                depth -= 1
                if not depth:
                    self.keys.setdefault(module, []).append(output)

        def compared(module: nn.Module, args: Any, kwargs: dict[str, Any], loss: Any) -> None:
            tensors, keywords = _arguments(args, kwargs)
            self.calls.append(Call(tensors, keywords, check_scalar(loss)))

        criterion: Any = self.model.criterion
        hooks = [criterion.register_forward_hook(compared, with_kwargs=True)]
        for module in _callable_modules(self.model):
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        # A module that both branches share is run again; no step updates such a one.
        for module in self.queries & set(self.keys):
            del self.keys[module]

    def check(self) -> None:
        """Raise RuntimeError if the queries could not be repeated alone."""
        name = type(self.model).__name__
        if not self.calls:
            raise RuntimeError(f"the training step of {name} did not call self.criterion")
        if not all(call.loss.requires_grad for call in self.calls):
            raise RuntimeError(f"a wrapped {name} needs gradients in its training step")
        replaced = {id(p) for module in self.keys for p in module.parameters()}
        now = self._versions()
        for key, parameter in self.model.named_parameters():
            if id(parameter) not in replaced and now.get(key) != self.versions.get(key):
                raise RuntimeError(
                    f"the training step of {name} updates {key}, which belongs to no module that "
                    "it calls without gradients, so it would be updated twice; mix in the step "
                    "itself with MixMask and MixMaskLoss"
                )

    @contextmanager
    def replaying(self) -> Iterator[list[list[Tensor]]]:
        """Let the training step run for its queries alone, which are yielded, call by call."""
        with self.state.restored(), self._stand_ins() as queries, _silenced(self.model):
            try:
                yield queries
            except _End:
                return
            raise RuntimeError("the training step calls self.criterion a varying number of times")

    @contextmanager
    def _stand_ins(self) -> Iterator[list[list[Tensor]]]:
        """Others in the places of the criterion, of key modules and of frozen parameters."""
        queries: list[list[Tensor]] = []

        def compared(*args: Any, **kwargs: Any) -> Tensor:
            tensors, _ = _arguments(args, kwargs)
            queries.append(tensors)
            if len(queries) == len(self.calls):
                raise _End
            return self.calls[len(queries) - 1].loss

        criterion: Any = self.model.criterion
        stand_ins: dict[Any, nn.Module] = {}
        for module, outputs in self.keys.items():
            noted = iter(outputs)
            stand_ins[module] = _StandIn(lambda *_, noted=noted, **__: next(noted), module)
        stand_ins[criterion] = _StandIn(compared, criterion)
        with ExitStack() as stack:
            for parent in list(self.model.modules()):
                children = parent._modules
                others = {name: stand_ins[m] for name, m in children.items() if m in stand_ins}
                stack.enter_context(exchanged(children, others))
            for parent in list(self.model.modules()):
                # What a step writes to a frozen parameter, as a moving average may, is lost.
                clones = {
                    name: nn.Parameter(p.detach().clone(), requires_grad=False)
                    for name, p in parent._parameters.items()
                    if p is not None and not p.requires_grad
                }
                stack.enter_context(exchanged(parent._parameters, clones))
            yield queries


class _End(Exception):
    """The criterion was called as often as in the stock step."""


@contextmanager
def _silenced(model: LightningModule) -> Iterator[None]:
    """Log nothing: neither by the module nor by the trainer's loggers."""
    ignore = dict.fromkeys(("log", "log_dict"), lambda *args, **kwargs: None)
    trainer: Any = model._trainer
    loggers = getattr(trainer, "loggers", [])
    with exchanged(vars(model), ignore):
        try:
            if loggers:
                trainer.loggers = [DummyLogger() for _ in loggers]
            yield
        finally:
            if loggers:
                trainer.loggers = loggers


def _callable_modules(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` and its modules, but for those within a compiled one, which runs as a whole."""
    yield model
    is_compiled = hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    for child in () if is_compiled else model.children():
        yield from _callable_modules(child)


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


class _StandIn(nn.Module):
    """Returns what it is told, and offers a momentum update something to write into."""

    def __init__(self, function: Any, module: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.of = lambda: module
        for number, value in enumerate(module.parameters()):
            scratch = nn.Parameter(torch.empty_like(value), value.requires_grad)
            self.register_parameter(f"parameter{number}", scratch)
        for number, buffer in enumerate(module.buffers()):
            self.register_buffer(f"buffer{number}", torch.empty_like(buffer))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Of the module itself, a number such as its width; what can be called has effects."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.of()
        value = getattr(module, name)
        if callable(value):
            raise RuntimeError(
                f"the training step uses {type(module).__name__}.{name}, which may not run twice; "
                "mix in the step itself with MixMask and MixMaskLoss"
            )
        return value
