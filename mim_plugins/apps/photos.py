"""A small labelled image folder cut from photographs that ship inside PyPI packages.

Needs no network: the photographs are files of scikit-image and scikit-learn. The class of
a crop is the photograph it comes from; train and test crops come from disjoint regions.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .._versions import importing

if TYPE_CHECKING:  # numpy and PIL come with the extras
    import numpy as np
    from PIL import Image

_SKIMAGE = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket",
)  # fmt: skip
_SKLEARN = ("china", "flower")
PHOTOS = tuple(sorted(_SKIMAGE + _SKLEARN))
TRAIN_SHARE = 0.65  # of the width; test crops come from the rest


def load_photo(name: str) -> np.ndarray:
    """One of :data:`PHOTOS` as ``(H, W, 3)`` uint8 RGB.

    Raises:
        ImportError: If scikit-image and scikit-learn are not installed.
        ValueError: If ``name`` is not one of :data:`PHOTOS`.
    """
    if name not in PHOTOS:
        raise ValueError(f"name must be one of {PHOTOS}, got {name!r}")
    _check_packages()
    import numpy as np
    import skimage.data
    from sklearn.datasets import load_sample_image

    is_sklearns = name in _SKLEARN
    photo = load_sample_image(f"{name}.jpg") if is_sklearns else getattr(skimage.data, name)()
    photo = np.asarray(photo)
    if photo.ndim == 2:
        photo = np.repeat(photo[:, :, None], 3, axis=2)
    return np.ascontiguousarray(photo[:, :, :3])


def _check_packages() -> None:
    with importing("the embedded photographs need scikit-image and scikit-learn"):
        import skimage.data  # noqa: F401  (requires numpy and PIL)
        import sklearn.datasets  # noqa: F401


def photo_crops(
    name: str, count: int, size: int, train: bool, rng: np.random.Generator
) -> list[Image.Image]:
    """Draw ``count`` square crops of one photograph, resized to ``size`` pixels.

    Crops cover 50 to 100 % of the shorter side of their region: the left 65 % of the
    photograph for training, the rest for testing.
    """
    photo = load_photo(name)
    from PIL import Image

    border = int(photo.shape[1] * TRAIN_SHARE)
    region = photo[:, :border] if train else photo[:, border:]
    height, width = region.shape[:2]
    crops = []
    for _ in range(count):
        side = int(min(height, width) * rng.uniform(0.5, 1.0))
        top = rng.integers(0, height - side + 1)
        left = rng.integers(0, width - side + 1)
        crop = Image.fromarray(region[top : top + side, left : left + side])
        crops.append(crop.resize((size, size), Image.Resampling.BICUBIC))
    return crops


def write_photo_folder(
    root: str | Path,
    size: int = 64,
    train_per_class: int = 128,
    test_per_class: int = 32,
    seed: int = 0,
) -> Path:
    """Write ``root/{train,test}/<photograph>/<i>.png`` and return ``root``.

    Deterministic under ``seed``. A folder already complete is left as it is; one that was
    completed with other settings is made anew, and ``root/train`` and ``root/test`` removed.

    Args:
        root: Folder to fill; created if missing.
        size: Side of the crops in pixels. Default: 64.
        train_per_class, test_per_class: Crops per photograph. Defaults: 128 and 32.
        seed: Seed of the crops' positions. Default: 0.

    Raises:
        ImportError: If scikit-image and scikit-learn are not installed.
    """
    root = Path(root)
    settings = f"{size} {train_per_class} {test_per_class} {seed}\n"
    done = root / ".complete"
    if done.exists() and done.read_text() == settings:
        return root
    _check_packages()
    import numpy as np

    splits = {"train": train_per_class, "test": test_per_class}
    if done.exists():  # without this mark, what is there is not ours to remove
        done.write_text("")
        for split in splits:
            if (root / split).exists():
                shutil.rmtree(root / split)
    for split, count in splits.items():
        rng = np.random.default_rng((seed, split == "train"))
        for name in PHOTOS:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index, crop in enumerate(photo_crops(name, count, size, split == "train", rng)):
                crop.save(folder / f"{index:04d}.png")
    done.write_text(settings)
    return root
