"""Pictures of ViTMAEForPreTraining of transformers, for ``show``."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .show import Reconstruct, reconstruct_patches


def open_checkpoint(args: argparse.Namespace) -> tuple[Any, int, Reconstruct]:
    """The model, the side of its images, and how it reconstructs them.

    Raises:
        ValueError: If it is no MAE, or weights are missing.
    """
    folder = args.checkpoint
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "vit_mae":
        raise ValueError(
            f"{folder} must hold a ViTMAEForPreTraining (model_type vit_mae), got {kind!r}"
        )
    try:
        loaded: Any = ViTMAEForPreTraining.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit its config.json: {error}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{folder} lacks {len(missing)} weights: {', '.join(missing[:3])}")
    model.eval()

    def predict(inputs: Tensor) -> tuple[Tensor, Tensor]:
        output = model(inputs)
        return output.logits, output.mask

    (mean, std), config = normalization(folder), model.config
    reconstruct = partial(
        reconstruct_patches, predict=predict, patch=config.patch_size,
        norm_pix=config.norm_pix_loss, mean=mean, std=std,
    )  # fmt: skip
    size = config.image_size
    return model, size if isinstance(size, int) else size[0], reconstruct


def normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and std by the image processor's file, else ImageNet's, which is said."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        print(f"no {path}: images are normalised by ImageNet's mean and std", file=sys.stderr)
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    processor = json.loads(path.read_text())
    if not processor.get("do_normalize", True):
        return [0.0], [1.0]
    return processor.get("image_mean", [0.5] * 3), processor.get("image_std", [0.5] * 3)
