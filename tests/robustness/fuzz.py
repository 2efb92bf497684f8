"""What is fuzzed, and how: every public component, its own arguments, and a use of it.

A component is found by itself, in mmpretrain's registries and in the public names of the
framework-free modules and of the lightly adapter. Its arguments are read off its constructor.
How it is used follows from the class it derives from, ``FAMILIES``; where there is none, or a
new required argument has no value in ``REQUIRED``, the test fails until it is added.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mim_plugins import masking, mixmask, regularizers
from mim_plugins.masking import ComplementaryMasking, Masking, PatchMask
from mim_plugins.mixmask import Mixer
from mim_plugins.regularizers import Term

Build = Callable[..., Any]
Use = Callable[[Any], Any]


class Thing:
    """An object of no use to anybody."""

    def __repr__(self) -> str:
        return "<a thing>"


WRONG: tuple[Any, ...] = (
    None, "bogus", b"x", True, False, -1, 0, 1, 2, 3, 1000, 0.5, -0.5, 1e-30, 1e30,
    math.nan, math.inf, [], [1, 2], (0.2, 0.8), ["bogus"], {}, {"bogus": 1}, Thing(),
)  # fmt: skip

# A value for arguments without default, by name.
REQUIRED: dict[str, Any] = {
    "hierarchy": {"grid": (8, 8)},
    "dim": 8,
    "width_px": 1,
    "num_classes": 3,
    "criterion": nn.functional.mse_loss,
}
# What else makes a component fit the images below.
FITTING: dict[str, dict[str, Any]] = {
    "HierarchicalMasking": {"patch_size": 4},
    "EpochSeed": {"seed": 0},
    "FeatureMonitor": {"monitors": ["rankme"]},
    "FeatureMonitorHook": {"monitors": ["rankme"]},
    "SplitBN": {"num_features": 8},
    "SplitBatchNorm": {"num_features": 8},
    "DPPMaskGenerator": {"input_size": 32, "mask_patch_size": 8},
    "MaskGenerator": {"masking": {"type": "BlockMasking"}, "input_size": 32, "mask_patch_size": 8},
}
# Arguments that are torch's own or data: what is wrong with them torch says.
NOT_FUZZED = {"device", "images", "generator", "model", "num_features"}


@dataclass(frozen=True)
class Component:
    """Something a user builds from arguments."""

    name: str
    build: Build
    use: Use
    arguments: tuple[str, ...]
    base: dict[str, Any] = field(default_factory=dict)
    slow: bool = False  # a whole training run: only a few accepted values are used

    def __str__(self) -> str:
        return self.name


def own_arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """Those of its constructor, and of further ones of this package that get its ``**kwargs``."""
    constructors = [cls]
    if isinstance(cls, type):
        constructors = [c.__init__ for c in cls.__mro__ if "__init__" in vars(c)]
    found: dict[str, inspect.Parameter] = {}
    for constructor in constructors:
        if not getattr(constructor, "__module__", "").startswith("mim_plugins"):
            break
        parameters = inspect.signature(constructor).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return {k: p for k, p in found.items() if k != "self" and k not in NOT_FUZZED}


def component(name: str, cls: Any, build: Build, use: Use, **base: Any) -> Component:
    arguments = own_arguments(cls)
    for key, parameter in arguments.items():
        if parameter.default is parameter.empty and key not in base and key in REQUIRED:
            base[key] = REQUIRED[key]
    base = {**FITTING.get(name.split(".")[-1], {}), **base}
    slow = use.__name__ in ("hook", "fit", "test_loop")
    return Component(name, build, use, tuple(arguments), base, slow)


def finite(value: Any) -> None:
    """AssertionError if a number in ``value`` is not finite."""
    if isinstance(value, Tensor):
        assert value.isfinite().all(), value
    elif isinstance(value, dict):
        for part in value.values():
            finite(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            finite(part)


# -- framework-free ------------------------------------------------------------------------


def images(batch: int = 4, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def draw_mask(made: Masking) -> None:
    mask = made(images(), patch_size=None if made.patch_size else 4)  # the model's
    patches = torch.arange(mask.ids_shuffle.shape[1])
    assert isinstance(mask, PatchMask)
    assert len(mask.ids_shuffle) == 4 * made.num_masks
    assert torch.equal(mask.ids_shuffle.sort(dim=1).values, patches.expand_as(mask.ids_shuffle))
    assert 0 < mask.num_keep < len(patches)


def draw_mix(made: Mixer) -> None:
    mix = made(images())
    finite(list(mix.views))
    assert 0.0 <= mix.lam <= 1.0


def add_term(made: Any) -> None:
    masks = ComplementaryMasking(4, patch_size=8)(images())
    tokens = torch.rand(16, 1 + 4, getattr(made, "dim", 8), requires_grad=True)
    given = {"images": images(), "mask": masks.mask, "final_norm": nn.Identity()}
    loss = made(tokens, num_masks=4, **given)
    loss.backward()
    finite([loss.detach(), tokens.grad])


def mix_loss(made: mixmask.MixMaskLoss) -> None:
    query, key, mixed = torch.rand(3, 4, 8)
    finite(made(query, key, (mixed, mixmask.MixMask()(images()))))


def normalize(made: nn.Module) -> None:
    finite(made(torch.rand(8, 8, 4, 4)))


FAMILIES: tuple[tuple[type, Use], ...] = (
    (Masking, draw_mask),
    (Mixer, draw_mix),
    (mixmask.MixMaskLoss, mix_loss),
    (Term, add_term),
    (nn.BatchNorm2d, normalize),
)


def in_family(cls: Any, families: Any) -> Any:
    """The entry of the first base of ``cls``."""
    for family, *entry in families:
        if isinstance(cls, type) and issubclass(cls, family):
            return entry
    raise AssertionError(
        f"{cls.__module__}.{cls.__name__} is not fuzzed: add its base class to FAMILIES"
    )


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in getattr(module, "__all__", dir(module)):
        value = getattr(module, name)
        if inspect.isclass(value) and value.__module__.startswith("mim_plugins"):
            yield name, value


def framework_free() -> Iterator[Component]:
    for module in (masking, mixmask, regularizers):
        for name, cls in public(module):
            data = name in ("PatchMask", "Mix", "Step", "Term", "FeatureTerm")
            if inspect.isabstract(cls) or data or not cls.__module__.startswith(module.__name__):
                continue
            if not name.startswith("_"):
                (use,) = in_family(cls, FAMILIES)
                yield component(name, cls, cls, use)
