"""Images, masks and reconstructions of a MAE or SimMIM checkpoint, as one picture.

    python -m mim_plugins show CHECKPOINT IMAGE [IMAGE ...] --out show.png

The checkpoint is a file or a work directory of mmpretrain's ``tools/train.py``. Its config is
``--config``, or the one that mmengine wrote beside it, or, with ``--trust``, the one inside.
One row per image: the image, the masked image (the masks are drawn as in training), the
reconstruction in place of the masked patches, and the reconstruction everywhere. IMAGE may be
a folder, of which the first images are taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from mmpretrain.models.selfsup import MAE
from torch import Tensor, nn

from .._check import check_int
from ..analysis.mosaic import mask_mosaic
from ..mmpretrain.analysis.mask_visualization import step_mask, step_reconstruction
from ..mmpretrain.analysis.reconstruction import _pixels
from . import command_parser
from .checkpoints import (
    check_device,
    draw_masks,
    find_config,
    find_run,
    first_line,
    image_size,
    load_model,
    read_checkpoint,
    read_config,
)
from .images import drop_unreadable, list_images, load_images


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


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("show", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, nargs="+", metavar="image")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--trust", action="store_true", help="run the config in the checkpoint")
    parser.add_argument("--out", type=Path, default=Path("show.png"))
    parser.add_argument("--limit", type=int, default=8, help="images of a folder")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    from PIL import Image

    try:
        check_int("limit", args.limit)
        if not 0 <= args.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2**32), got {args.seed}")
        device = check_device(args.device)
        model, config = find_model(args.checkpoint, args.config, args.trust)
        named = [list_images(p)[: args.limit] if p.is_dir() else [p] for p in args.images]
        paths = drop_unreadable([path for group in named for path in group])
        if not paths:
            raise ValueError(f"no image can be read in {', '.join(map(str, args.images))}")
        images = load_images(paths, image_size(model, config))
        set_random_seed(args.seed)
        mosaic = picture(model.to(device), config, images)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic.numpy()).save(args.out)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Picture of {len(paths)} images: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
