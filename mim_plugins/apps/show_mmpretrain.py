"""Pictures of MAE and SimMIM checkpoints of mmpretrain, for ``show``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmpretrain.models.selfsup import MAE
from torch import Tensor, nn

from .._check import first_line
from ..mmpretrain.analysis.reconstruction import _pixels, step_reconstruction
from .checkpoints import (
    draw_masks,
    find_config,
    find_run,
    image_size,
    load_model,
    read_checkpoint,
    read_config,
)
from .show import Reconstruct


def open_checkpoint(args: argparse.Namespace) -> tuple[Any, int, Reconstruct]:
    """The model, the side of its images, and how it reconstructs them."""
    model: Any
    model, config = find_model(args.checkpoint, args.config, args.trust)

    def reconstruct(images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, encode, mask = draw_masks(model, config, images)
        encoded = encode()
        is_mae = isinstance(model, MAE)
        predicted = model.neck(encoded[0], encoded[2]) if is_mae else model.neck(encoded[0])
        pixels = step_reconstruction(model, inputs, {"backbone": encoded, "neck": predicted})
        return _pixels(model, inputs), mask, None if pixels is None else _pixels(model, pixels)

    return model, image_size(model, config), reconstruct


def find_model(checkpoint: Path, config: Path | None, trust: bool) -> tuple[nn.Module, Config]:
    """Model and config of a checkpoint.

    Raises:
        ValueError: If there is no config, or the checkpoint does not fit it.
    """
    if checkpoint.is_dir():
        run = find_run(str(checkpoint))
        checkpoint, config = run.checkpoint, config or run.config
    source = config or find_config(checkpoint.parent)
    if config is not None or source.is_file():
        found = read_config(source)
        return load_model(found, checkpoint, source), found
    text = read_checkpoint(checkpoint)[1].get("cfg")
    if not isinstance(text, str):
        raise ValueError(f"{checkpoint} has no config beside or inside it: give --config")
    if not trust:
        raise ValueError(
            f"{checkpoint} has no config beside it: give --config, or --trust to use the one "
            "inside, which is code, if you trust where the file comes from"
        )
    try:
        found = Config.fromstring(text, ".py")
    except Exception as error:  # it is code, and may raise anything
        raise ValueError(f"the config in {checkpoint} is broken: {first_line(error)}") from error
    return load_model(found, checkpoint, checkpoint), found
