"""Pictures of MAE and SimMIM checkpoints of mmpretrain, for ``show``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.models.selfsup import MAE
from torch import Tensor, nn

from ..analysis.mosaic import mask_mosaic
from ..mmpretrain.analysis.mask_visualization import step_mask, step_reconstruction
from ..mmpretrain.analysis.reconstruction import _pixels
from .checkpoints import (
    draw_masks,
    find_config,
    find_run,
    first_line,
    image_size,
    load_model,
    read_checkpoint,
    read_config,
)
from .images import drop_unreadable, load_images


class Shown:
    """A checkpoint as ``show`` asks for it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model: Any
        self.model, self.config = find_model(args.checkpoint, args.config, args.trust)
        self.size = image_size(self.model, self.config)

    def picture(self, images: Tensor) -> Tensor:
        return picture(self.model, self.config, images)


def read_images(paths: list[Path], size: int) -> Tensor:
    """As mmpretrain's pipelines read and resize them; unreadable ones are named and left out.

    Raises:
        ValueError: If none is left.
    """
    readable = drop_unreadable(paths)
    if not readable:
        raise ValueError(f"no image can be read in {', '.join(map(str, paths))}")
    return load_images(readable, size)


@torch.no_grad()
def picture(model: Any, config: Config, images: Tensor) -> Tensor:
    """Draw masks, reconstruct, and put the pictures side by side.

    Args:
        model: A MAE or SimMIM in evaluation mode.
        config: Its config; SimMIM draws masks in the pipeline of its training data.
        images: ``(B, 3, size, size)`` RGB in 0..255.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    data = {"inputs": images.flip(1), "data_samples": None}  # the preprocessor takes BGR
    inputs = model.data_preprocessor(data)["inputs"]
    if isinstance(model, MAE):
        encoded = model.backbone(inputs)
        predicted = model.neck(encoded[0], encoded[2])
        mask = step_mask(model, {"inputs": inputs}, {"backbone": encoded}, "show")
    else:
        mask = draw_masks(model, config, inputs).to(inputs.device)
        encoded = model.backbone(inputs, mask)
        predicted = model.neck(encoded[0])
    pixels = step_reconstruction(model, inputs, {"backbone": encoded, "neck": predicted})
    return mask_mosaic(
        _pixels(model, inputs), mask, None if pixels is None else _pixels(model, pixels)
    )


def find_model(checkpoint: Path, config: Path | None, trust: bool) -> tuple[nn.Module, Config]:
    """Model and config of a checkpoint.

    Raises:
        ValueError: If there is no config, or the checkpoint does not fit it.
    """
    if checkpoint.is_dir():
        run = find_run(str(checkpoint))
        checkpoint, config = run.checkpoint, config or run.config
    if not checkpoint.is_file():
        raise ValueError(f"checkpoint must be a file or a work directory, got {checkpoint}")
    beside = find_config(checkpoint.parent)
    if config is not None or beside.is_file():
        source = config or beside
        found = read_config(source)
    else:
        meta = read_checkpoint(checkpoint).get("meta", {})
        text = meta.get("cfg") if isinstance(meta, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{checkpoint} has no config beside or inside it: give --config")
        if not trust:
            raise ValueError(
                f"{checkpoint} has no config beside it: give --config, or --trust to use the one "
                "inside, which is code, if you trust where the file comes from"
            )
        source = checkpoint
        try:
            found = Config.fromstring(text, ".py")
        except Exception as error:  # it is code, and may raise anything
            raise ValueError(f"the config in {source} is broken: {first_line(error)}") from error
    return load_model(found, checkpoint, source), found
