"""Images drawn from a known hierarchy: an object, its parts, their texture.

The true latents of every level are known, so what an encoder has identified can be measured
by probing each level (:mod:`benchmarks.hierarchical_sweep` does).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import check_int, check_weight
from .._versions import importing
from ..masking.hierarchy import LatentHierarchy

GRID = 8  # patches a side; cells of 2 x 2 patches, parts of 4 x 4
MAX_OBJECTS = 8  # corners of the colour cube


class ImageLatents(NamedTuple):
    """The independent noise of every variable, image by image. Heights: patch 0 to object 3.

    A variable is determined by its own noise and its ancestors'; what belongs to it alone is
    its noise, and that is what is to be probed.
    """

    object: Tensor
    """``(n,)`` long, which object: the class of the image. Colours of all parts."""
    part: Tensor
    """``(n, 4, 2)`` in [-1, 1]: how brightness slopes across each quarter, down and right."""
    texture: Tensor
    """``(n, 16, 2)`` in [-1, 1]: amplitudes of two gratings in each cell of 2 x 2 patches."""
    patch: Tensor
    """``(n, 64)`` in [-1, 1]: brightness of each patch."""

    def select(self, index: Tensor) -> ImageLatents:
        """The latents of some images."""
        return ImageLatents(*(field[index] for field in self))


class HierarchicalImages(torch.utils.data.Dataset):
    """Images of objects with 2 x 2 parts, each of 2 x 2 textured cells of 2 x 2 patches.

    The object decides the colour of every part: a permutation of one palette for each
    part, so that a colour tells the object only together with its place, and the colours of
    an image average to grey. The part adds a slope of brightness, the cell a grating, the
    patch a brightness of its own; a sigmoid of the sum and Gaussian noise, clipped, give
    pixels. So every patch shows all that is above it (Assumption 1 of Kong et al., CVPR
    2023), and every level bears on the mean of what is hidden. The graph is
    :meth:`hierarchy`.

    Image i depends on the seed and i only. An item is ``(image, object)``: ``(3, S, S)``
    float32 in [0, 1] and an int.

    Args:
        num_images: Number of images. Default: 1024.
        image_size: S, a multiple of 8, at least 16. A patch is ``S // 8`` pixels. Default: 32.
        num_objects: Number of classes, 2 to 8. Default: 8.
        noise: Standard deviation of the pixels' noise, at least 0. Without any, an untrained
            encoder already tells every latent. Default: 0.25.
        seed: Default: 0.

    Attributes:
        latents: :class:`ImageLatents` of all images.

    Raises:
        TypeError: If an argument is no number of the right kind.
        ValueError: If an argument is out of range.

    Example:
        >>> data = HierarchicalImages(num_images=4)
        >>> image, label = data[3]
        >>> image.shape, label == data.latents.object[3]
        (torch.Size([3, 32, 32]), tensor(True))
    """

    def __init__(
        self,
        num_images: int = 1024,
        image_size: int = 32,
        num_objects: int = 8,
        noise: float = 0.25,
        seed: int = 0,
    ) -> None:
        check_int("num_images", num_images)
        self.image_size = check_int("image_size", image_size, 2 * GRID)
        if image_size % GRID:
            raise ValueError(f"image_size must be a multiple of {GRID}, got {image_size}")
        self.num_objects = check_int("num_objects", num_objects, 2)
        if num_objects > MAX_OBJECTS:
            raise ValueError(f"num_objects must be at most {MAX_OBJECTS}, got {num_objects}")
        self.noise = check_weight("noise", noise)
        self.seed = check_int("seed", seed, 0)
        # One row per image: longer data sets begin with the same images.
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(num_images, 1 + 4 * 2 + 16 * 2 + 64, generator=generator)
        labels, part, texture, patch = draws.split([1, 8, 32, 64], dim=1)
        self.latents = ImageLatents(
            object=(labels[:, 0] * num_objects).long(),
            part=(2 * part - 1).unflatten(1, (4, 2)),
            texture=(2 * texture - 1).unflatten(1, (16, 2)),
            patch=2 * patch - 1,
        )

    def __len__(self) -> int:
        return len(self.latents.object)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        chosen = torch.tensor([index % len(self)])
        return self.images(chosen)[0], int(self.latents.object[index])

    def images(self, index: Tensor, latents: ImageLatents | None = None) -> Tensor:
        """Several images at once: ``(n, 3, S, S)`` float32 in [0, 1].

        Args:
            index: ``(n,)`` long, which images.
            latents: Of n images, to be drawn with the noise of those. Default: their own.
        """
        latents = self.latents.select(index) if latents is None else latents
        clean = render(latents, self.image_size)
        if not self.noise:
            return clean
        generator = torch.Generator()
        for image, number in zip(clean, index.tolist(), strict=True):
            # The CPU generator takes 32 bits; an odd factor spreads neighbouring seeds.
            generator.manual_seed((self.seed * 0x9E3779B1 + number) % 2**32)
            image += self.noise * torch.randn(image.shape, generator=generator)
        return clean.clamp_(0, 1)

    @staticmethod
    def hierarchy() -> LatentHierarchy:
        """The graph: a quadtree over 8 x 8 patches. Textures have height 1, the object 3."""
        return LatentHierarchy.quadtree((GRID, GRID), branching=2)


def render(latents: ImageLatents, image_size: int = 32) -> Tensor:
    """Images ``(n, 3, S, S)`` float32 in [0, 1] of given latents, without noise."""
    number, side = len(latents.object), image_size // GRID
    palette = _palette()[_codes()[latents.object]]  # (n, 4, 3)
    colour = _spread(palette, 2, image_size)

    # Slope of brightness across a part, from -1 to 1.
    ramp = torch.linspace(-1, 1, image_size // 2).repeat(2)
    slope = _spread(latents.part, 2, image_size)
    slopes = slope[:, :1] * ramp[:, None] + slope[:, 1:] * ramp

    # Two gratings with one wave per patch, so that every patch shows both.
    wave = torch.cos(2 * torch.pi * (torch.arange(image_size) % side + 0.25) / side)
    amplitude = _spread(latents.texture, 4, image_size)
    gratings = amplitude[:, :1] * wave[:, None] + amplitude[:, 1:] * wave

    own = _spread(latents.patch.view(number, -1, 1), GRID, image_size)
    return torch.sigmoid(1.2 * colour + 1.0 * slopes + 1.0 * gratings + 0.3 * own)


def _spread(values: Tensor, blocks: int, image_size: int) -> Tensor:
    """``(n, blocks * blocks, C)`` to ``(n, C, S, S)``: each block one value."""
    grid = values.transpose(1, 2).unflatten(2, (blocks, blocks))
    side = image_size // blocks
    return grid.repeat_interleave(side, 2).repeat_interleave(side, 3)


def _palette() -> Tensor:
    """``(8, 3)``: the corners of the colour cube, -1 or 1."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)


def _codes() -> Tensor:
    """``(8, 4)`` long: which colour the parts of each object have.

    A different permutation for every part, so that no colour belongs to an object; parts
    come in pairs of complementary colours, so that no average of colours does.
    """
    generator = torch.Generator().manual_seed(2023)
    first, second = (torch.randperm(MAX_OBJECTS, generator=generator) for _ in range(2))
    last = MAX_OBJECTS - 1  # the corner opposite corner i is last - i
    return torch.stack([first, second, last - first, last - second], dim=1)


def write_hierarchical_folder(
    root: str | Path,
    num_train: int = 2048,
    num_test: int = 512,
    image_size: int = 32,
    num_objects: int = 8,
    noise: float = 0.25,
    seed: int = 0,
) -> Path:
    """Write ``root/{train,test}/object_<k>/<i>.png``, and return ``root``.

    A folder as mmpretrain's ``CustomDataset`` and torchvision's ``ImageFolder`` read it;
    the class is the object. ``root/{train,test}_latents.json`` holds the latents, in the
    order of the file names' numbers. A folder already complete is left as it is.

    Args:
        root: Folder to fill; created if missing.
        num_train, num_test: Number of images. Defaults: 2048 and 512.
        image_size, num_objects, noise: See :class:`HierarchicalImages`.
        seed: Of the training images; the test images' is ``seed + 1``. Default: 0.

    Raises:
        ImportError: If Pillow is not installed.
        TypeError, ValueError: See :class:`HierarchicalImages`.
    """
    with importing("writing images needs Pillow"):
        from PIL import Image
    root = Path(root)
    settings = f"{num_train} {num_test} {image_size} {num_objects} {noise} {seed}\n"
    done = root / ".complete"
    if done.exists() and done.read_text() == settings:
        return root
    splits = {"train": (num_train, seed), "test": (num_test, seed + 1)}
    for split, (number, split_seed) in splits.items():
        data = HierarchicalImages(number, image_size, num_objects, noise, split_seed)
        for label in range(num_objects):
            (root / split / f"object_{label}").mkdir(parents=True, exist_ok=True)
        for index in range(number):
            image, label = data[index]
            array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(array).save(root / split / f"object_{label}" / f"{index:06d}.png")
        latents = {name: field.tolist() for name, field in data.latents._asdict().items()}
        (root / f"{split}_latents.json").write_text(json.dumps(latents))
    done.write_text(settings)
    return root
