"""Every component that the package registers in mmpretrain's or mmengine's registries."""

from __future__ import annotations

import inspect
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import mmengine.registry
import mmpretrain.registry
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import default_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import Registry
from mmengine.runner import Runner, TestLoop
from mmpretrain.models import heads, selfsup
from mmpretrain.registry import BATCH_AUGMENTS, HOOKS, METRICS, MODELS, TASK_UTILS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader

from mim_plugins.masking import Masking
from mim_plugins.mixmask import Mixer
from mim_plugins.regularizers import Term

from ..mmpretrain import models, siamese
from ..mmpretrain.regularizers.test_regularized import build_simmim
from .fuzz import (
    Component,
    add_term,
    component,
    draw_mask,
    draw_mix,
    finite,
    images,
    in_family,
    normalize,
)
from .mmpretrain_cases import L1, L2, hivit, mae

COMPLEMENTARY = {"type": "ComplementaryMasking", "num_masks": 4}
NUMBER = 4
RUNS = itertools.count()


class Photos(torch.utils.data.Dataset):
    """Noise in three classes."""

    metainfo: dict[str, Any] = {"classes": ("a", "b", "c")}  # noqa: RUF012

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = DataSample()
        sample.set_gt_label(index % 3)
        return {"inputs": images(NUMBER, 64)[index], "data_samples": sample}


# -- how each family is built, from its arguments, and used ---------------------------------


def build_mae(name: str, **arguments: Any) -> nn.Module:
    several = {"masking": COMPLEMENTARY} if name == "MIMAE" else {}
    return models.build("MaskedMAEViT", {"type": name, **arguments}, **several)


def build_hivit(name: str, **arguments: Any) -> nn.Module:
    return hivit(name, **arguments)().model


def build_head(name: str, **arguments: Any) -> nn.Module:
    if issubclass(MODELS.get(name), heads.SimMIMHead):
        head = {"type": name, "patch_size": 4, "loss": L1, **arguments}
        return build_simmim({"type": "SimMIM", "head": head}, vit=False)
    head = {"type": name, "patch_size": 8, "norm_pix": True, "loss": L2, **arguments}
    return mae(algorithm={"head": head})().model


def build_any_simmim(name: str, vit: bool = False, **arguments: Any) -> nn.Module:
    if name == "MISimMIM":
        masking = {**COMPLEMENTARY, "num_masks": 2, "mask_unit": 16}
        given = {"information": {"token": "mean"}, **arguments}
        arguments = given if "mask_generator" in arguments else {"masking": masking, **given}
    if "simmim" in name.lower() and "token" in inspect.signature(MODELS.get(name)).parameters:
        arguments = {"token": "mean", **arguments}
    return build_simmim({"type": name, **arguments}, vit)


def build_siamese(name: str, **arguments: Any) -> nn.Module:
    return siamese.build(name.removeprefix("MixMask"), True, **arguments)


def step(model: nn.Module) -> None:
    """Loss and gradients of one step of an algorithm."""
    inputs: Any = images(4, 64)
    samples = [DataSample() for _ in range(4)]
    for sample in samples:
        rows = 16 if getattr(model.head, "patch_size", 8) == 4 else 8
        if not isinstance(model, selfsup.MAE):  # which draws its own
            sample.set_field(torch.arange(rows**2).view(rows, rows) % 2, "mask")
    if isinstance(model, (selfsup.MoCo, selfsup.BYOL, selfsup.SimCLR, selfsup.SimSiam)):
        inputs = siamese.views()
    loss, values = model.parse_losses(model.loss(inputs, samples))
    loss.backward()
    finite(dict(values))
    finite([p.grad for p in model.parameters() if p.grad is not None])


def beit(name: str, **arguments: Any) -> nn.Module:
    config = {"type": name, "arch": models.ARCH, "img_size": 64, "patch_size": 8}
    return MODELS.build({**config, **arguments})


def encode(made: nn.Module) -> None:
    finite(made(images(2, 64), torch.arange(64).view(8, 8).expand(2, -1, -1) % 2))


def pyramid(made: nn.Module) -> None:
    channels = made.scales[1].in_channels
    finite(made([torch.rand(2, channels, 4, 4) for _ in range(4)]))


def transform(made: BaseTransform) -> None:
    pixels = (images(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    mask = made({"img": pixels})["mask"]
    assert set(np.unique(mask)) == {0, 1}


def augment(made: Any) -> None:
    finite(made(images(), torch.eye(4)))


def runner(hooks: tuple[Hook, ...] = (), **options: Any) -> Runner:
    """An epoch of a tiny MAE on four images."""
    folder = tempfile.TemporaryDirectory()
    loader = DataLoader(Photos(), 2, collate_fn=default_collate)
    made = Runner(
        models.build("MaskedMAEViT"),
        work_dir=folder.name,
        train_dataloader=loader,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        train_cfg={"by_epoch": True, "max_epochs": 1},
        default_hooks=dict.fromkeys(("logger", "checkpoint", "runtime_info", "timer")),
        custom_hooks=list(hooks),
        default_scope="mmpretrain",
        log_level="ERROR",
        randomness={"seed": 0},
        experiment_name=f"fuzz-{next(RUNS)}",
        **options,
    )
    made.folder = folder  # as long as the runner
    return made


def hook(made: Hook) -> None:
    run = runner((made,))
    run.train()
    finite(run.model.state_dict())


def build_loop(name: str, **arguments: Any) -> Runner:
    made = runner(
        test_dataloader=DataLoader(Photos(), 2, collate_fn=default_collate),
        test_cfg={"type": name, **arguments},
        test_evaluator={"type": "ReconstructionMetric"},
    )
    made._test_loop = made.build_test_loop(made._test_loop)  # mmengine builds it when it starts
    return made


def test_loop(made: Runner) -> None:
    finite({name: torch.tensor(value) for name, value in made.test().items()})


def metric(made: BaseMetric) -> None:
    made.process({}, [{"reconstruction": image, "image": image / 2} for image in images()])
    assert made.results


def plain(registry: Registry) -> Any:
    return lambda name, **arguments: registry.build({"type": name, **arguments})


SIAMESE = (selfsup.MoCo, selfsup.BYOL, selfsup.SimCLR, selfsup.SimSiam)
FAMILIES: tuple[tuple[Any, Any, Any], ...] = (
    (Masking, plain(TASK_UTILS), draw_mask),
    (Mixer, plain(TASK_UTILS), draw_mix),
    (selfsup.MAEHiViT, build_hivit, step),
    (selfsup.MAEViT, models.build, step),
    (selfsup.MAE, build_mae, step),
    (selfsup.SimMIM, build_any_simmim, step),
    (SIAMESE, build_siamese, step),
    ((heads.MAEPretrainHead, heads.SimMIMHead), build_head, step),
    (BaseTransform, plain(TRANSFORMS), transform),
    (Hook, plain(HOOKS), hook),
    (TestLoop, build_loop, test_loop),
    (BaseMetric, plain(METRICS), metric),
    (Term, plain(MODELS), add_term),
    (nn.BatchNorm2d, plain(MODELS), normalize),
)
# Components that derive from nothing in particular.
OTHERS: dict[str, tuple[Any, Any]] = {
    "SimMIMBEiTViT": (beit, encode),
    "SimMIMViT": (lambda name, **arguments: build_simmim({"type": "SimMIM"}, vit=True), step),
    "ViTPyramid": (plain(mmengine.registry.MODELS), pyramid),
    "MixMask": (plain(BATCH_AUGMENTS), augment),
}


def registered() -> Iterator[tuple[str, str, type]]:
    """Registry, name and class of all that the package registers."""
    seen = set()
    for module in (mmpretrain.registry, mmengine.registry):
        for kind, registry in vars(module).items():
            if not isinstance(registry, Registry):
                continue
            for name, cls in registry.module_dict.items():
                here = cls.__module__.startswith("mim_plugins.")
                # A remedy stands in for upstream's own component under its name.
                if here and not cls.__module__.endswith(".remedies") and cls not in seen:
                    seen.add(cls)
                    yield kind, name, cls


def components() -> Iterator[Component]:
    for kind, name, cls in registered():
        if name in OTHERS and not issubclass(cls, Mixer):
            build, use = OTHERS[name]
        else:
            build, use = in_family(cls, FAMILIES)
        yield component(f"{kind}.{name}", cls, partial(build, name), use)
