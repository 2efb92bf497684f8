"""The masks of one step: drawn for its images where lightly's functions are called."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from itertools import combinations
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from lightly.models import utils
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ..masking import Masking, PatchMask
from .batch import entry_of, views_of
from .masking import block_mask, square_patch, token_indices, token_mask
from .watch import Encoding, prefix_tokens, watching

if TYPE_CHECKING:
    from .wrap import Plugin

MASK_FUNCTIONS = {
    name: getattr(utils, name)
    for name in (
        "random_token_mask",
        "random_grid_token_mask",
        "random_inverse_block_mask",
        "random_block_mask",
    )
}
_current = threading.local()  # .draws, those of the step that runs in this thread
_lock = threading.Lock()
_running = 0  # steps, in all threads
_exchanged: list[tuple[ModuleType, str, str]] = []  # as find_mask_functions() returns them
_eager = torch.compiler.disable(recursive=False)  # what it decorates is left out of graphs


def calls_mask_functions(cls: type) -> bool:
    """Whether a method of ``cls`` names one of lightly's mask functions."""
    own = cls.__mro__[: cls.__mro__.index(LightningModule)]
    methods = [value for base in own for value in vars(base).values()]
    codes = [method.__code__ for method in methods if isinstance(method, FunctionType)]
    named = {name for code in codes for name in (*code.co_names, *code.co_freevars)}
    return not named.isdisjoint(MASK_FUNCTIONS)


@contextmanager
@_eager
def drawing(
    model: LightningModule, plugin: Plugin, step: str, batch: Any, copies: int
) -> Iterator[Draws | None]:
    """Within, lightly's mask functions draw in this thread; see :class:`Draws`, which is yielded.

    Args:
        model: The wrapped module.
        plugin: Its plugin.
        step: Name of the step that is run.
        batch: What it gets, for whose images masks are drawn.
        copies: How often the batch holds each image.
    """
    outer = getattr(_current, "draws", None)
    if plugin.masking is None:
        yield None
    elif outer is not None and outer.model is model:  # a step that another one calls
        before = outer.batch, outer.copies
        outer.batch, outer.copies = batch, copies
        try:
            yield None
        finally:
            outer.batch, outer.copies = before
    else:
        draws = Draws(model, plugin, step, batch, copies)
        with watching(draws.encoders if draws.is_first else (), draws.check):
            _exchange(+1)
            _current.draws = draws
            try:
                yield draws
            finally:
                _current.draws = outer  # of another model, whose step calls this one's
                _exchange(-1)
        if draws.is_first:
            draws.conclude()


class Draws:
    """The masks of one step of ``model``, as lightly's mask functions return them.

    The first run of each step of a module, until one has passed, also watches what the
    module's encoders are given.

    Raises:
        RuntimeError: If the step draws no masks, its encoder gets masks from elsewhere, or
            encodes other images than those that the masks were drawn for; or the batch could
            not be repeated for several masks of each image.
    """

    def __init__(
        self, model: LightningModule, plugin: Plugin, step: str, batch: Any, copies: int
    ) -> None:
        self.model, self.plugin, self.step = model, plugin, step
        self.batch, self.copies = batch, copies
        self.name = f"the {step.replace('_', ' ')} of {type(model).__name__}"
        self.encoders = [m for m in model.modules() if isinstance(m, MaskedVisionTransformer)]
        self.is_first = step not in plugin.checked
        self.drawn: list[tuple[Tensor | None, Tensor]] = []  # images, (B, N) bool
        self.asked: Counter[tuple[int, int]] = Counter()
        self.num_seen = 0
        self.is_skipped = False  # the step left its batch out

    def conclude(self) -> None:
        """Of the first run: all masks were drawn here and looked at."""
        if self.is_skipped:
            return
        if self.step == "training_step" and torch.is_grad_enabled():
            if not self.drawn:
                raise RuntimeError(
                    f"{self.name} drew none of its masks by {', '.join(MASK_FUNCTIONS)} of "
                    "lightly.models.utils under their own names; call "
                    "mim_plugins.lightly.token_mask there"
                )
            if not self.num_seen:
                rank_zero_warn(
                    "wrap(masking=...): no MaskedVisionTransformer of lightly was given a mask in "
                    f"{self.name}; that the images it encodes are those its masks were drawn for "
                    "cannot be checked"
                )
        if self.drawn:
            self.plugin.checked.add(self.step)

    @torch.compiler.disable
    def check(self, seen: Encoding) -> None:
        """Of what an encoder is given: its mask was drawn here, and for these images."""
        self.num_seen += 1
        removed = seen.removed  # a step may use a part of a mask
        drawn = [of for of, mask in self.drawn if _within(mask, removed) or _within(removed, mask)]
        if not drawn:
            raise RuntimeError(
                f"{self.name} encodes images with masks that wrap() did not draw: not by "
                f"{', '.join(MASK_FUNCTIONS)} of lightly.models.utils under their own names; "
                "call mim_plugins.lightly.token_mask there"
            )
        masking = self.plugin.masking
        if not isinstance(masking, Masking) or not masking.depends_on_images:
            return
        if not any(_same(seen.images, of) for of in drawn):
            raise RuntimeError(
                f"{self.name} encodes other images than those its masks were drawn for: it changes "
                "them, as an augmentation does, or takes another view. Say which by "
                "wrap(..., images=...), a key, an index or a function of the batch, e.g. "
                "images=lambda batch: batch[0][1], augment before the step (in the data set or in "
                "on_after_batch_transfer), or call mim_plugins.lightly.token_mask(images, ...) in "
                "the step"
            )

    def tokens(
        self,
        size: tuple[int, int],
        mask_ratio: float,
        device: torch.device | str | None,
        num_prefix_tokens: int | None = None,
        mask_class_token: bool = False,
        grid_size: int | None = None,
        **shape: Any,
    ) -> tuple[Tensor, Tensor]:
        """As lightly's ``random_[grid_]token_mask`` and ``random_inverse_block_mask``.

        ``shape``, that of a block, is the masking's business.
        """
        masking = self.plugin.masking
        number, length = size
        if num_prefix_tokens is None:
            # lightly's function knows of one; encoders of others, or without, go by their own.
            num_prefix_tokens = max(map(prefix_tokens, self.encoders), default=1)
        patches = length - num_prefix_tokens
        if not isinstance(masking, Masking):
            given = self._given(number, patches)
            mask = PatchMask.from_mask(given)
            return token_indices(mask, num_prefix_tokens, device or given.device)
        images = self._images(number, patches)
        once = images[: len(images) // self.copies]
        repeats = self.is_first and self.copies > 1
        if repeats and not torch.equal(images, once.repeat(self.copies, 1, 1, 1)):
            raise RuntimeError(
                f"{self.name} needs its images {self.copies} times, for as many masks of each: "
                "wrap() repeats tensors, lists, tuples, dicts and dataclasses, and the batch is "
                f"of {type(self.batch).__name__}"
            )
        keep, removed = token_mask(
            once,
            (len(once) * masking.num_masks, length),
            mask_ratio,
            mask_class_token,
            device,
            masking=masking,
            num_prefix_tokens=num_prefix_tokens,
            grid_size=grid_size,
        )
        keep, removed = keep[:number], removed[:number]
        if self.is_first:
            is_removed = removed.new_zeros(number, length).scatter(1, removed, 1).bool()
            self.drawn.append((images, is_removed[:, num_prefix_tokens:]))
        return keep, removed

    def blocks(
        self,
        size: tuple[int, int, int],
        batch_mask_ratio: float,
        min_image_mask_ratio: float,
        max_image_mask_ratio: float,
        device: torch.device | str | None,
        **shape: Any,
    ) -> Tensor:
        """As lightly's ``random_block_mask``; ``shape`` as of :meth:`tokens`."""
        masking = self.plugin.masking
        if not isinstance(masking, Masking):
            given = self._given(size[0], size[1] * size[2])
            return given.view(size).to(device or given.device)
        ratio, variation = masking.mask_ratio, self.plugin.mask_ratio_var
        if ratio is None:
            ratio = (min_image_mask_ratio + max_image_mask_ratio) / 2
            variation = (max_image_mask_ratio - min_image_mask_ratio) / 2
        images = self._images(size[0], size[1] * size[2])
        options: Any = {"masking": masking, "mask_ratio": ratio, "mask_ratio_var": variation}
        mask = block_mask(images, size, batch_mask_ratio, device, **options)
        if self.is_first:
            self.drawn.append((images, mask.flatten(1)))
        return mask

    def _given(self, number: int, patches: int) -> Tensor:
        """``(number, patches)`` bool, the masks that the batch holds."""
        assert self.plugin.masking is not None
        mask = entry_of("masking", self.batch, self.plugin.masking)
        mask = mask.mask if isinstance(mask, PatchMask) else mask
        is_mask = isinstance(mask, Tensor) and mask.ndim > 1
        if not is_mask or mask.flatten(1).shape != (number, patches):
            raise ValueError(
                f"masking={self.plugin.masking!r} must be the masks of {number} images of "
                f"{patches} patches in the batch, got {getattr(mask, 'shape', type(mask).__name__)}"
            )
        removed = mask.flatten(1).bool()
        if self.is_first:
            self.drawn.append((None, removed))
        return removed

    def _images(self, number: int, patches: int) -> Tensor:
        """Consecutive views of equal size that hold so many images and patches.

        The first ones; if the step asks again for as many, the next.
        """
        views = views_of(self.batch, self.plugin.images)

        def fits(run: list[Tensor]) -> bool:
            first = run[0]
            alike = first.ndim == 4 and all(view.shape[1:] == first.shape[1:] for view in run)
            return alike and sum(map(len, run)) == number and bool(square_patch(first, patches))

        every = (views[start:stop] for start, stop in combinations(range(len(views) + 1), 2))
        runs = [run for run in every if fits(run)]
        if not runs:
            raise ValueError(
                f"masks for {number} images of {patches} patches were asked for, but the batch "
                f"holds views of {[tuple(view.shape) for view in views]}; say where the images are "
                "by wrap(..., images=...), a key, an index or a function of the batch"
            )
        run = runs[self.asked[number, patches] % len(runs)]
        self.asked[number, patches] += 1
        return run[0] if len(run) == 1 else torch.cat(run)


@_eager
def _exchange(number: int) -> None:
    """Count the steps that run; while there are some, the mask functions ask ``_current``."""
    global _running
    with _lock:
        before, _running = _running, _running + number
        if not before:
            _exchanged.extend(find_mask_functions(len(sys.modules)))
        if not before or not _running:
            for holder, key, name in _exchanged:
                setattr(holder, key, _STAND_INS[name] if _running else MASK_FUNCTIONS[name])
        if not _running:
            _exchanged.clear()


@lru_cache(maxsize=1)
def find_mask_functions(num_modules: int) -> list[tuple[ModuleType, str, str]]:
    """Where lightly's mask functions are among so many modules: module, key, own name."""
    names = {id(function): name for name, function in MASK_FUNCTIONS.items()}
    return [
        (module, key, names[id(value)])
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType)
        for key, value in list(vars(module).items())
        if id(value) in names
    ]


def _stand_in(name: str, stock: Any) -> Any:
    signature = inspect.signature(stock)

    @_eager
    @wraps(stock)
    def function(*args: Any, **kwargs: Any) -> Any:
        draws = getattr(_current, "draws", None)
        if draws is None:
            return stock(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()  # lightly's own
        draw = draws.blocks if name == "random_block_mask" else draws.tokens
        return draw(**given.arguments)

    return function


_STAND_INS = {name: _stand_in(name, stock) for name, stock in MASK_FUNCTIONS.items()}


def _within(inner: Tensor, outer: Tensor) -> bool:
    inner = inner.to(outer.device)
    return inner.shape == outer.shape and not bool((inner & ~outer).any())


def _same(images: Tensor, drawn: Tensor | None) -> bool:
    return (
        drawn is not None and images.shape == drawn.shape and torch.equal(images, drawn.to(images))
    )
