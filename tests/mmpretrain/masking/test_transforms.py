"""DPPMaskGenerator beside the stock generators it replaces."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mmpretrain.datasets.transforms import BEiTMaskGenerator, SimMIMMaskGenerator

from mim_plugins.apps.photos import photo_crops
from mim_plugins.masking import DPPMasking, _numba
from mim_plugins.mmpretrain.masking.transforms import DPPMaskGenerator, MaskGenerator

SIMMIM = [
    {},
    {"input_size": 224, "mask_patch_size": 16, "model_patch_size": 16, "mask_ratio": 0.75},
    {"input_size": 64, "mask_patch_size": 16, "model_patch_size": 2, "mask_ratio": 0.9},
    {"input_size": 160, "mask_patch_size": 16, "model_patch_size": 8, "mask_ratio": 0.1},
]


def photo(size: int) -> np.ndarray:
    return np.asarray(photo_crops("astronaut", 1, size, True, np.random.default_rng(0))[0])


@pytest.mark.parametrize("arguments", SIMMIM)
def test_simmim_arguments_give_the_same_shape_dtype_and_count(arguments: dict) -> None:
    image = photo(arguments.get("input_size", 192))
    stock = SimMIMMaskGenerator(**arguments)({"img": image})["mask"]
    ours = DPPMaskGenerator(**arguments)({"img": image})["mask"]
    assert ours.shape == stock.shape
    assert ours.dtype == stock.dtype
    assert ours.sum() == stock.sum()
    scale = arguments.get("mask_patch_size", 32) // arguments.get("model_patch_size", 4)
    units = ours.reshape(len(ours) // scale, scale, -1, scale)
    assert (units.max(axis=(1, 3)) == units.min(axis=(1, 3))).all()


@pytest.mark.parametrize("arguments", SIMMIM)
def test_tau_one_is_the_stock_mask_bit_for_bit(arguments: dict) -> None:
    image = photo(arguments.get("input_size", 192))
    masks = []
    for generator in (SimMIMMaskGenerator(**arguments), DPPMaskGenerator(tau=1.0, **arguments)):
        np.random.seed(0)  # noqa: NPY002
        masks.append([generator({"img": image})["mask"] for _ in range(5)])
    np.testing.assert_array_equal(*masks)


def test_beit_arguments_give_the_same_shape_dtype_and_count() -> None:
    arguments = {
        "input_size": (14, 14),
        "num_masking_patches": 75,
        "max_num_patches": 75,
        "min_num_patches": 16,
    }
    image = photo(224)
    stock = BEiTMaskGenerator(**arguments)({"img": image})["mask"]
    ours = DPPMaskGenerator(**arguments)({"img": image})["mask"]
    assert ours.shape == stock.shape == (14, 14)
    assert ours.dtype == stock.dtype
    assert ours.sum() == stock.sum() == 75


def test_masks_depend_on_the_image() -> None:
    """Of a half-black image all but one of the black units are masked first."""
    image = photo(64).copy()
    image[:32] = 0
    generator = DPPMaskGenerator(64, 8, 8, mask_ratio=0.5, tau=0.0)
    mask = generator({"img": image})["mask"]
    assert mask[:4].sum() >= 31
    assert mask.sum() == 32


@pytest.mark.skipif(not _numba.INSTALLED, reason="numba is not installed")
def test_the_same_masks_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [photo(192), photo(192)[:, ::-1], photo(192).astype(np.float32)]
    masks = []
    for installed in (True, False):
        monkeypatch.setattr(_numba, "INSTALLED", installed)
        generator = DPPMaskGenerator(mask_patch_size=16)
        np.random.seed(0)  # noqa: NPY002
        masks.append([generator({"img": image})["mask"] for image in images])
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize(
    "masking",
    [
        {"type": "RandomMasking"},
        {"type": "GridMasking"},
        {"type": "BlockMasking"},
        {"type": "HierarchicalMasking", "hierarchy": {"grid": (4, 4)}, "level": 1},
        {"type": "ComplementaryMasking", "num_masks": 1, "base": {"type": "DPPMasking"}},
        DPPMasking(mask_ratio=0.6, patch_size=4, mask_unit=16),
    ],
    ids=str,
)
def test_any_masking(masking: dict | DPPMasking) -> None:
    """Stock's key, shape, dtype and count, from SimMIM's and from BEiT's arguments."""
    simmim = {"input_size": 64, "mask_patch_size": 16, "model_patch_size": 4}
    stock = SimMIMMaskGenerator(**simmim)({"img": photo(64)})["mask"]
    mask = MaskGenerator(masking=masking, **simmim)({"img": photo(64)})["mask"]
    assert (mask.shape, mask.dtype, mask.sum()) == (stock.shape, stock.dtype, stock.sum())
    assert (mask.reshape(4, 4, 4, 4).max(axis=(1, 3)) == mask[::4, ::4]).all()
    if isinstance(masking, dict):
        beit = {"input_size": 4, "num_masking_patches": 7, "min_num_patches": 2}
        stock = BEiTMaskGenerator(**beit)({"img": photo(64)})["mask"]
        mask = MaskGenerator(masking=masking, **beit)({"img": [photo(64), photo(32)]})["mask"]
        assert (mask.shape, mask.dtype, mask.sum()) == (stock.shape, stock.dtype, stock.sum())


def test_presets_are_the_generator_with_their_masking() -> None:
    arguments = {"input_size": 64, "mask_patch_size": 8, "model_patch_size": 8}
    dpp = {"type": "DPPMasking", "tau": 0.0}
    pairs = [
        (MaskGenerator(masking=dpp, **arguments), DPPMaskGenerator(tau=0.0, **arguments)),
        (
            MaskGenerator(masking={"type": "RandomMasking"}, **arguments),
            SimMIMMaskGenerator(**arguments),
        ),
    ]
    for pair in pairs:
        masks = []
        for generator in pair:
            np.random.seed(3)  # noqa: NPY002
            masks.append([generator({"img": photo(64)})["mask"] for _ in range(3)])
        np.testing.assert_array_equal(*masks)


def test_images_of_every_form() -> None:
    """Grey ones as mmcv loads them, without a channel; tensors and PIL's; other types."""
    from PIL import Image

    generator = DPPMaskGenerator(64, 8, 8, mask_ratio=0.5, tau=0.0)

    def draw(image: object, generator: MaskGenerator = generator) -> np.ndarray:
        np.random.seed(0)  # noqa: NPY002
        return generator({"img": image})["mask"]

    image = photo(64)
    for same in (
        torch.from_numpy(image),
        torch.from_numpy(image).permute(2, 0, 1),
        Image.fromarray(image),
        image.astype(">f4"),
        image.astype(np.uint16),
        np.asfortranarray(image),
    ):
        np.testing.assert_array_equal(draw(same), draw(image))
    three_rows = DPPMaskGenerator((24, 64), 8, 8, mask_ratio=0.5, tau=0.0)  # as many as channels
    first = torch.from_numpy(image[:24]).permute(2, 0, 1)
    np.testing.assert_array_equal(draw(first, three_rows), draw(image[:24], three_rows))
    np.testing.assert_array_equal(draw(image[..., 0]), draw(image[..., :1]))
    np.testing.assert_array_equal(draw(Image.fromarray(image[..., 0])), draw(image[..., :1]))


def test_in_data_loader_workers() -> None:
    """Forked workers, which inherit the compiled code, draw as the main process does."""
    generator = DPPMaskGenerator(64, 8, 8, mask_ratio=0.5, tau=0.0)
    images = [np.roll(photo(64), shift, axis=0) for shift in range(8)]

    def draw(index: int) -> np.ndarray:
        np.random.seed(index)  # noqa: NPY002
        return generator({"img": images[index]})["mask"]

    class Masks(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> np.ndarray:
            return draw(index)

    loader = torch.utils.data.DataLoader(
        Masks(), batch_size=4, num_workers=2, multiprocessing_context="fork"
    )
    drawn = torch.cat(list(loader)).numpy()
    np.testing.assert_array_equal(drawn, [draw(index) for index in range(len(images))])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="input_size must be a multiple of mask_patch_size=32"):
        DPPMaskGenerator(input_size=100)
    with pytest.raises(ValueError, match="mask_patch_size must be a multiple of model_patch_size"):
        DPPMaskGenerator(mask_patch_size=32, model_patch_size=5)
    with pytest.raises(ValueError, match="mask_ratio=0.0 must mask at least one and not all of 36"):
        DPPMaskGenerator(mask_ratio=0.0)
    with pytest.raises(ValueError, match="num_masking_patches=196 must mask"):
        DPPMaskGenerator((14, 14), num_masking_patches=196)
    with pytest.raises(ValueError, match=r"tau must be in \[0, 1\], got 2"):
        DPPMaskGenerator(tau=2)
    with pytest.raises(ValueError, match="divisible into 6 x 6 masking units, got 100 x 100 x 3"):
        DPPMaskGenerator()({"img": photo(100)})
    complementary = {"type": "ComplementaryMasking"}
    with pytest.raises(ValueError, match="masking must draw one mask per image"):
        MaskGenerator(masking=complementary)
    with pytest.raises(ValueError, match="mask_ratio is 0.5 in the masking and 0.6 in what uses"):
        MaskGenerator(masking={"type": "RandomMasking", "mask_ratio": 0.5})
    with pytest.raises(ValueError, match="mask_unit is 16 in the masking and 32 in what uses it"):
        MaskGenerator(masking={"type": "RandomMasking", "mask_unit": 16})
    with pytest.raises(ValueError, match=r"one observable per masking unit, 6 x 6, got \(8, 8\)"):
        MaskGenerator(masking={"type": "HierarchicalMasking", "hierarchy": {"grid": (8, 8)}})
