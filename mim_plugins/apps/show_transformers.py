"""Pictures of ViTMAEForPreTraining of transformers, for ``show``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..analysis.mosaic import mask_mosaic
from ..analysis.pixels import grid_of, undo_normalization, unpatchify, with_statistics_of


class Shown:
    """A checkpoint as ``show`` asks for it.

    Raises:
        ValueError: If it is no MAE, or weights are missing.
    """

    def __init__(self, args: argparse.Namespace) -> None:
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
        self.model, info = loaded
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{folder} lacks {len(missing)} weights: {', '.join(missing[:3])}")
        self.model.eval()
        size = self.model.config.image_size
        self.size = size if isinstance(size, int) else size[0]
        self.mean, self.std = normalization(folder)

    @torch.no_grad()
    def picture(self, images: Tensor) -> Tensor:
        """``(height, width, 3)`` uint8, of images ``(B, 3, size, size)`` in 0..255."""
        model, config = self.model, self.model.config
        shift, scale = (
            torch.tensor(x, device=model.device).view(-1, 1, 1) for x in (self.mean, self.std)
        )
        inputs = (images.to(model.device) / 255 - shift) / scale
        output = model(inputs)
        predicted = unpatchify(output.logits.float(), config.patch_size, *inputs.shape[2:])
        if config.norm_pix_loss:
            predicted = with_statistics_of(predicted, inputs, config.patch_size)
        return mask_mosaic(
            undo_normalization(inputs, self.mean, self.std),
            output.mask.view(-1, *grid_of(output.mask.shape[1], *inputs.shape[2:])),
            undo_normalization(predicted, self.mean, self.std),
        )


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
