"""Folders of labelled images as people have them, and pixels as mmpretrain's training sees them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch and mmcv are imported when pixels are needed
    import numpy as np
    from torch import Tensor

    Reader = Callable[[Path], np.ndarray | None]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_images(folder: Path) -> list[Path]:
    """Image files below ``folder`` in order; nothing in hidden folders."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    )


def visible_folders(folder: Path) -> list[Path]:
    """Folders in a folder, in order, without hidden ones such as ``.ipynb_checkpoints``."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def class_folders(folder: Path) -> list[str]:
    """Names of the visible folders that hold images, in order."""
    subs = visible_folders(folder) if folder.is_dir() else []
    return [path.name for path in subs if list_images(path)]


def read_image(path: Path) -> np.ndarray | None:
    """``(H, W, 3)`` uint8 RGB as the first step of mmpretrain's pipelines reads it, in BGR.

    The EXIF orientation is applied and 16 bits become 8. None: the file cannot be read.
    """
    from mmcv.transforms import LoadImageFromFile

    try:
        return LoadImageFromFile()({"img_path": str(path)})["img"][:, :, ::-1]
    except Exception:  # of OpenCV, of the file system, an assertion of mmcv
        return None


def read_with_pillow(path: Path) -> np.ndarray | None:
    """As :func:`read_image`, where there is no mmcv."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


def drop_unreadable(paths: list[Path], read: Reader = read_image) -> list[Path]:
    """The images that can be read; the others are counted and named on stderr."""

    def is_readable(path: Path) -> bool:
        return read(path) is not None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        readable = list(pool.map(is_readable, paths))
    broken = [path for path, good in zip(paths, readable, strict=True) if not good]
    if broken:
        names = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        print(f"skipped {len(broken)} of {len(paths)} images, unreadable: {names}", file=sys.stderr)
    return [path for path, good in zip(paths, readable, strict=True) if good]


def load_images(paths: list[Path], size: int, read: Reader = read_image) -> Tensor:
    """``(n, 3, size, size)`` float32 RGB in 0..255.

    Raises:
        ValueError: If a file cannot be read.
    """
    import numpy as np
    import torch
    from PIL import Image

    arrays = []
    for path in paths:
        image = read(path)
        if image is None:
            raise ValueError(f"image {path} cannot be read")
        # As RandomResizedCrop of the pre-training configs resizes.
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        arrays.append(np.asarray(resized))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
