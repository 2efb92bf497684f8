"""Models of mmpretrain runs, whose weights are those of the checkpoint or an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import find_latest_checkpoint
from mmpretrain.models.selfsup import MAE, SimMIM
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from .._check import first_line
from ..mmpretrain import MISimMIM, RegularizedMAE
from ..mmpretrain.analysis.reconstruction import step_mask


class Run(NamedTuple):
    """A configuration and its checkpoint."""

    name: str
    config: Path
    checkpoint: Path


def find_config(folder: Path) -> Path:
    """The newest config that mmengine wrote into a work directory; it may not exist."""
    written = (  # not just any script, which reading would run
        path
        for path in folder.glob("*.py")
        if re.search(r"^work_dir ?= ?", path.read_text(errors="replace"), re.MULTILINE)
    )
    configs = sorted(written, key=lambda path: path.stat().st_mtime)
    return configs[-1] if configs else folder / "(no config)"


def find_run(argument: str) -> Run:
    """A run from a work directory, or from ``config.py=checkpoint.pth``.

    Raises:
        ValueError: If there is no configuration or checkpoint.
    """
    folder = Path(argument)
    if folder.is_dir() or "=" not in argument:
        latest = find_latest_checkpoint(str(folder)) if folder.is_dir() else None
        # last_checkpoint holds an absolute path; a copied folder has its own file.
        checkpoint = folder / Path(latest).name if latest else folder / "(no checkpoint)"
        config, name = find_config(folder), folder.resolve().name
    else:
        # Either path may hold a "=" itself.
        cuts = [match.start() for match in re.finditer("=", argument)]
        pairs = [(Path(argument[:cut]), Path(argument[cut + 1 :])) for cut in cuts]
        both = (pair for pair in pairs if pair[0].is_file() and pair[1].is_file())
        config, checkpoint = next(both, pairs[0])
        name = f"{checkpoint.parent.name}/{checkpoint.stem}"
    for what, path in (("config", config), ("checkpoint", checkpoint)):
        if not path.is_file():
            raise ValueError(
                "a run must be a work directory of tools/train.py or config.py=checkpoint.pth, "
                f"got {argument!r}: no {what} {path}"
            )
    return Run(name, config, checkpoint)


def read_config(path: Path) -> Config:
    """A config file.

    Raises:
        ValueError: If it cannot be read or has no model.
    """
    try:
        config = Config.fromfile(path)
    except Exception as error:  # it is code, and may raise anything
        raise ValueError(f"config {path} cannot be read: {first_line(error)}") from error
    if "model" not in config:
        raise ValueError(f"config {path} must have a model")
    return config


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Weights and ``meta`` of a checkpoint, by mmengine's and torch's safe loading.

    Raises:
        ValueError: If it cannot be read or holds no weights.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(str(path), "cpu", logger="silent")
    except Exception as error:  # junk: errors of zipfile, pickle, struct, torch, the system
        reason = first_line(error)
        if "Weights only load failed" in str(error):
            reason = "it is no checkpoint, or holds more than numbers"
        raise ValueError(f"checkpoint {path} cannot be read: {reason}") from error
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"checkpoint {path} must hold a state_dict of weights")
    # Those of a distributed model have a prefix.
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    meta = checkpoint.get("meta")
    return weights, meta if isinstance(meta, dict) else {}


def load_model(config: Config, path: Path, source: object) -> nn.Module:
    """The model of a config with the weights of a checkpoint, in evaluation mode.

    Args:
        config: With ``model`` and ``data_preprocessor``.
        path: The checkpoint.
        source: Where the config comes from, for messages.

    Raises:
        ValueError: If the model is neither MAE nor SimMIM, a weight of it is missing in the
            checkpoint or has another shape, or is not finite.
    """
    MMLogger.get_current_instance().setLevel("ERROR")
    init_default_scope("mmpretrain")
    try:
        preprocessor = {"data_preprocessor": config.get("data_preprocessor")}
        model: Any = MODELS.build({**preprocessor, **config.model})
    except Exception as error:  # a config may ask for anything
        raise ValueError(f"the model of {source} cannot be built: {first_line(error)}") from error
    if not isinstance(model, MAE | SimMIM):
        raise ValueError(
            f"the model of {source} must be a MAE or SimMIM, got {type(model).__name__}"
        )
    weights, _ = read_checkpoint(path)
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"checkpoint {path} must be finite, got NaN or infinity in {key}")
    try:
        unfit = model.load_state_dict(weights, strict=False).missing_keys
        what = "lacks"
    except RuntimeError as error:  # names all the weights of another shape
        unfit = re.findall(r"size mismatch for (\S+):", str(error)) or [first_line(error)]
        what = "has other shapes of"
    if unfit:
        keys = ", ".join(unfit[:3]) + (", ..." if len(unfit) > 3 else "")
        raise ValueError(
            f"checkpoint {path} does not fit the model of {source}: it {what} {len(unfit)} of "
            f"{len(model.state_dict())} weights: {keys}"
        )
    model.eval()  # some of upstream's return None
    return model


def image_size(model: nn.Module, config: Config) -> int:
    """Side of a model's images in pixels."""
    size: Any = getattr(model.backbone, "img_size", None)
    if size is None:  # Swin does not keep it
        size = config.model.backbone.get("img_size", 224)
    return size if isinstance(size, int) else size[0]


def preprocess(model: Any, images: Tensor) -> Tensor:
    """What the model gets of images ``(B, 3, H, W)``, RGB in 0..255."""
    # Preprocessors take BGR, as LoadImageFromFile reads.
    return model.data_preprocessor({"inputs": images.flip(1), "data_samples": None})["inputs"]


@torch.no_grad()
def draw_masks(
    model: Any, config: Config, images: Tensor
) -> tuple[Tensor, Callable[[], Any], Tensor]:
    """Draw masks for images as in the run: by the model, or its pipeline.

    Args:
        model: Of :func:`load_model`.
        config: Its config, whose training data may have a mask generator.
        images: ``(B, 3, H, W)``, RGB in 0..255.

    Returns:
        What the model gets of the images, a function that gives what its backbone returns for
        them under these masks, and the masks ``(B, rows, columns)``; where an image has several,
        the first.

    Raises:
        ValueError: If nobody draws masks.
    """
    inputs = preprocess(model, images)
    dataset = config.get("train_dataloader", {}).get("dataset", {})
    steps = [s for s in dataset.get("pipeline", ()) if s["type"].endswith("MaskGenerator")]
    if isinstance(model, MISimMIM):
        side = model.head.patch_size
        drawn = model.masking(inputs, mask_ratio=model.mask_ratio, patch_size=side).mask
        mask = drawn[: len(inputs)].unflatten(1, [length // side for length in inputs.shape[2:]])
    elif steps and isinstance(model, SimMIM | RegularizedMAE):
        generator = TRANSFORMS.build(steps[0])
        pixels = images.flip(1).permute(0, 2, 3, 1).byte().cpu().numpy()
        masks = [torch.as_tensor(generator({"img": image})["mask"]) for image in pixels]
        mask = torch.stack(masks).to(inputs.device)
    elif isinstance(model, SimMIM):
        raise ValueError(
            "the config's train_dataloader must have a mask generator in its pipeline: "
            f"{type(model).__name__} draws no masks itself"
        )
    else:
        encoded = model.backbone(inputs)
        mask = step_mask(model, {"inputs": inputs}, {"backbone": encoded}, "MAE")
        return inputs, lambda: encoded, mask
    return inputs, partial(model.backbone, inputs, mask), mask
