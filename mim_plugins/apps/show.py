"""Images, masks and reconstructions of a checkpoint, as one picture.

    python -m mim_plugins show CHECKPOINT IMAGE [IMAGE ...] --out show.png

CHECKPOINT is one of

- a file or a work directory of mmpretrain's ``tools/train.py``, MAE or SimMIM. Its config is
  ``--config``, or the one that mmengine wrote beside it, or, with ``--trust``, the one inside.
- a ``.ckpt`` of Lightning with lightly's MAE on a ViT of timm. Its images are normalised as
  lightly's transforms do. What no weight tells is ``--heads``, ``--norm-pix``, ``--mask-ratio``.
- a folder that transformers' ``save_pretrained`` wrote for ``ViTMAEForPreTraining``.

One row per image: the image, the masked image (the masks are drawn as in training; of the
last two, which do not keep their masking, at random), the reconstruction in place of the
masked patches, and the reconstruction everywhere. IMAGE may be a folder, of which the first
images are taken.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._check import check_int
from .._observe import preserve_rng
from .._pixels import grid_of, unpatchify, with_statistics_of
from .._tensor import check_device
from ..analysis.mosaic import mask_mosaic
from . import command_parser
from .images import drop_unreadable, list_images, load_images, read_image, read_with_pillow

# From images ``(B, 3, side, side)`` in 0..255 to what ``mask_mosaic`` takes.
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]


def framework_of(checkpoint: Path) -> str:
    """Whose checkpoint it is, by what it holds: ``mmpretrain``, ``lightly``, ``transformers``.

    Raises:
        ValueError: If there is nothing.
    """
    if not checkpoint.exists():
        raise ValueError(f"checkpoint must be a file or a folder, got {checkpoint}")
    if checkpoint.is_dir():
        return "transformers" if (checkpoint / "config.json").is_file() else "mmpretrain"
    if checkpoint.suffix == ".safetensors":
        raise ValueError(f"{checkpoint} holds weights alone: give its folder, with config.json")
    if checkpoint.is_file() and zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            for name in archive.namelist():
                # Read, not run.
                if name.endswith("data.pkl") and b"pytorch-lightning_version" in archive.read(name):
                    return "lightly"
    return "mmpretrain"


def reconstruct_patches(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    patch: int,
    norm_pix: bool,
    predict: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks and reconstructions by a model that predicts the pixels of patches.

    Args:
        images: ``(B, 3, side, side)`` in 0..255.
        mean, std: With which the model gets images in [0, 1].
        patch: Side of a patch in pixels.
        norm_pix: Whether the pixels of each patch are predicted normalised.
        predict: From the model's images to its patches ``(B, N, 3 * patch**2)`` and what was
            masked, ``(B, N)``.
    """
    images = images / 255
    shift, scale = (images.new_tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
    inputs = (images - shift) / scale
    patches, mask = predict(inputs)
    predicted = unpatchify(patches.float(), patch, *inputs.shape[2:])
    if norm_pix:
        predicted = with_statistics_of(predicted, inputs, patch)
    rows_columns = grid_of(mask.shape[1], *inputs.shape[2:])
    return images, mask.view(-1, *rows_columns), predicted * scale + shift


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("show", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, nargs="+", metavar="image")
    parser.add_argument("--config", type=Path, help="mmpretrain's")
    parser.add_argument("--trust", action="store_true", help="run code in the checkpoint")
    parser.add_argument(
        "--heads", type=int, nargs=2, metavar=("ENCODER", "DECODER"),
        help="of attention, where lightly's MAE has others than timm's models of its width",
    )  # fmt: skip
    parser.add_argument("--norm-pix", action="store_true", help="lightly's MAE predicts such")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="of lightly's MAE")
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
        framework = framework_of(args.checkpoint)
        named = [list_images(p)[: args.limit] if p.is_dir() else [p] for p in args.images]
        paths = [path for group in named for path in group]
        try:
            shower: Any = importlib.import_module(f".show_{framework}", __package__)
        except ImportError as error:
            raise ImportError(
                f"{args.checkpoint} is a checkpoint of {framework} ({error}): "
                f"pip install 'mim_plugins[{framework}]'"
            ) from error
        model, size, reconstruct = shower.open_checkpoint(args)
        read = read_image if framework == "mmpretrain" else read_with_pillow
        if not (readable := drop_unreadable(paths, read)):
            raise ValueError(f"no image can be read in {', '.join(map(str, args.images))}")
        images = load_images(readable, size, read)
        model.to(device)
        with torch.no_grad(), preserve_rng(args.seed):
            mosaic = mask_mosaic(*reconstruct(images.to(device)))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic.numpy()).save(args.out)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Picture of {len(images)} images: {args.out}")
    return 0
