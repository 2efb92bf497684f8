"""Rows of the table: plugins for mmpretrain, beside models of its own parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmpretrain.models.selfsup import SimMIM
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.data import Dataset

from mim_plugins.masking import RandomMasking
from mim_plugins.masking._numba import INSTALLED
from mim_plugins.regularizers import KoLeoLoss, Term, VarianceCovarianceLoss

from ..mmpretrain import models, siamese
from ..mmpretrain.regularizers.test_mi_mae import SMALL
from ..mmpretrain.regularizers.test_regularized import SWIN, build_simmim
from .case import Builder, Case
from .training import BATCH, Setup

NUMBER = 32  # images
HIVIT = {"embed_dims": 32, "depths": [1, 1, 7], "num_heads": 2}
L2 = {"type": "PixelReconstructionLoss", "criterion": "L2"}
L1 = {"type": "PixelReconstructionLoss", "criterion": "L1", "channel": 3}


class Images(Dataset):
    """Images, or pairs of views, that are the same in every epoch and worker."""

    def __init__(self, size: int, views: int = 1, classes: int = 0, mask: Any = None) -> None:
        generator = torch.Generator().manual_seed(5)
        # Coarse structure: the patches of an image differ, as those of photographs.
        coarse = torch.rand(NUMBER, views, 3, size // 8, size // 8, generator=generator)
        fine = torch.rand(NUMBER, views, 3, size, size, generator=generator)
        self.images = 0.8 * coarse.repeat_interleave(8, 3).repeat_interleave(8, 4) + 0.2 * fine
        self.classes = classes
        self.mask = mask

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, index: int) -> dict[str, Any]:
        views = list(self.images[index])
        sample = DataSample()
        if self.classes:
            sample.set_gt_label(index % self.classes)
        if self.mask is not None:
            sample.set_field(torch.from_numpy(self.mask(views[0])), "mask")
        return {"inputs": views[0] if len(views) == 1 else views, "data_samples": sample}


# -- MAE -----------------------------------------------------------------------------------


def mae(backbone: str = "MAEViT", algorithm: dict | None = None, **arguments: Any) -> Builder:
    return lambda: Setup(models.build(backbone, algorithm, **arguments), Images(64))


def masked(**masking: Any) -> Builder:
    return mae("MaskedMAEViT", masking=masking)


def mi_mae(num_masks: int, **arguments: Any) -> Builder:
    return mae(
        "MaskedMAEViT",
        {"type": "MIMAE", "information": SMALL, **arguments},
        masking={"type": "ComplementaryMasking", "num_masks": num_masks},
    )


def uniform(weight: float) -> Builder:
    return mae(algorithm={"type": "UMAE", "uniformity_weight": weight})


def boundary(head: str = "BoundaryMAEHead", **width: int) -> Builder:
    return mae(
        algorithm={"head": {"type": head, "patch_size": 8, "norm_pix": True, "loss": L2, **width}}
    )


def hivit(backbone: str, **arguments: Any) -> Builder:
    patches = {"num_patches": 16, "patch_size": 16}
    decoder = {"embed_dim": 32, "decoder_embed_dim": 32, "decoder_depth": 1}
    parts = {
        "neck": {"type": "MAEPretrainDecoder", "decoder_num_heads": 2, **patches, **decoder},
        "head": {"type": "MAEPretrainHead", "patch_size": 16, "norm_pix": True, "loss": L2},
    }
    arguments = {"arch": HIVIT, "patch_size": 16, "out_indices": [6], **arguments}
    return mae(backbone, parts, **arguments)


def vit() -> tuple[nn.Module, str]:
    """As in upstream's linear-probe config."""
    return _backbone(
        type="VisionTransformer", arch=models.ARCH, img_size=64, patch_size=8,
        out_type="cls_token", final_norm=True,
    )  # fmt: skip


def _backbone(**config: Any) -> tuple[nn.Module, str]:
    init_default_scope("mmpretrain")
    return MODELS.build(config), "backbone."


def plain_hivit() -> tuple[nn.Module, str]:
    return _backbone(type="HiViT", arch=HIVIT, img_size=64, patch_size=16, out_indices=[6])


VICREG = tuple(f"loss_variance_covariance_{term}" for term in ("variance", "covariance"))
STOCK_MAE, NEUTRAL_MAE = mae(), mae("MaskedMAEViT")
STOCK_HIVIT = hivit("MAEHiViT")


def term_case(term: type[Term], *logged: str) -> Case:
    def weighted(weight: float) -> Builder:
        config = {"type": term.__name__, "weight": weight}
        return mae(algorithm={"type": "RegularizedMAE", "regularizers": [config]})

    return mae_case(term.name, weighted(0.1), weighted(0.0), logged=logged)


# -- SimMIM --------------------------------------------------------------------------------


def simmim(
    algorithm: dict, transform: str = "SimMIMMaskGenerator", vit: bool = False, **arguments: Any
) -> Builder:
    """With masks of the data pipeline, of units of 16 pixels in a grid of 4 x 4."""

    def build() -> Setup:
        init_default_scope("mmpretrain")
        generator = TRANSFORMS.build(
            {"type": transform, "input_size": 64, "mask_patch_size": 16}
            | {"model_patch_size": 8 if vit else 4}
            | arguments
        )

        def mask(image: Tensor) -> np.ndarray:
            pixels = (image * 255).byte().permute(1, 2, 0).numpy()
            return generator({"img": pixels})["mask"]

        return Setup(build_simmim(algorithm, vit), Images(64, mask=mask))

    return build


def swin() -> tuple[nn.Module, str]:
    stage = {"block_cfgs": {"window_size": 2}}
    return _backbone(type="SwinTransformer", arch=SWIN, img_size=64, stage_cfgs=stage)


class RandomlyMasked(SimMIM):
    """Stock SimMIM, given random masks where MISimMIM draws its own."""

    def loss(self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any) -> dict:
        mask = RandomMasking(mask_ratio=0.6, patch_size=4, mask_unit=16)(inputs).mask.view(
            -1, 16, 16
        )
        for sample, one in zip(data_samples, mask.float(), strict=True):
            sample.set_field(one, "mask")
        return super().loss(inputs, data_samples, **kwargs)


def mi_simmim(num_masks: int, **arguments: Any) -> Builder:
    algorithm = {
        "type": "MISimMIM",
        "masking": {
            "type": "ComplementaryMasking", "num_masks": num_masks, "mask_unit": 16
        },
        "information": {**SMALL, "token": "mean"},
    }  # fmt: skip
    return lambda: Setup(build_simmim({**algorithm, **arguments}, vit=False), Images(64))


def boundary_simmim(head: str, **width: int) -> Builder:
    return simmim({"type": "SimMIM", "head": {"type": head, "patch_size": 4, "loss": L1, **width}})


# With numba the generator goes from pixels to masks past DPPMasking.scores().
GENERATOR_CALLS = {"DPPMaskGenerator": BATCH} | ({} if INSTALLED else {"DPPMasking": BATCH})
STOCK_SIMMIM = simmim({"type": "SimMIM"})

# -- siamese -------------------------------------------------------------------------------

MIXED = {"mixmask": {"grid_size": 4}, "unmix": {"prob_global": 0.5}}


def siamese_pair(algorithm: str, plugin: bool, **arguments: Any) -> Builder:
    return lambda: Setup(
        siamese.build(algorithm, plugin, **arguments), Images(siamese.SIZE, views=2)
    )


def resnet() -> tuple[nn.Module, str]:
    return _backbone(type="ResNet_CIFAR", depth=18, stem_channels=8, base_channels=8)


ERASED = {"mixmask": {"type": "EraseMask", "grid_size": 4}}


def siamese_case(algorithm: str, syncs: int, once: tuple[str, ...] = ()) -> Case:
    return Case(
        f"mixmask {algorithm}",
        "mmpretrain",
        on=siamese_pair(algorithm, True, **MIXED),
        neutral=siamese_pair(algorithm, True),
        stock=siamese_pair(algorithm, False),
        backbone=resnet,
        calls={"MixMask": 1, "BlockMasking": 1, "UnMix": 1},
        draws=5,  # MixMask's four and Un-Mix's seed
        logged=("loss_orig", "loss_mixmask", "loss_unmix"),
        syncs=syncs,
        once=once,
    )


# -- batch augmentation --------------------------------------------------------------------


def classifier(augment: str, prob: float, **arguments: Any) -> Builder:
    def build() -> Setup:
        init_default_scope("mmpretrain")
        torch.manual_seed(0)
        backbone, _ = resnet()
        model = MODELS.build(
            {
                "type": "ImageClassifier",
                "data_preprocessor": {"num_classes": 3, "to_onehot": True},
                "backbone": backbone,
                "neck": {"type": "GlobalAveragePooling"},
                "head": {
                    "type": "LinearClsHead",
                    "num_classes": 3,
                    "in_channels": 64,
                    "loss": {"type": "CrossEntropyLoss", "use_soft": True},
                },
                "train_cfg": {"augments": [{"type": augment, **arguments}], "probs": [prob]},
            }
        )
        model.init_weights()
        return Setup(model, Images(siamese.SIZE, classes=3))

    return build


# -- the table -----------------------------------------------------------------------------


def mae_case(name: str, on: Builder, neutral: Builder = NEUTRAL_MAE, **expected: Any) -> Case:
    return Case(name, "mmpretrain", on, neutral, STOCK_MAE, vit, **expected)


TERMS = (
    *(f"loss_mutual_information_{term}" for term in ("cross", "input", "variational")),
    *(f"mutual_information_{term}" for term in ("cross", "input")),
)

CASES = [
    mae_case("mae random", masked(type="RandomMasking", mask_unit=16), calls={"RandomMasking": 1}),
    mae_case(
        "mae dpp",
        masked(type="DPPMasking", tau=0.5),
        masked(type="DPPMasking", tau=1.0),
        calls={"DPPMasking": 1},
    ),
    mae_case(
        "mae dpp encoder",
        masked(type="DPPMasking", tau=0.5, features="encoder"),
        masked(type="DPPMasking", tau=1.0, features="encoder"),
        calls={"DPPMasking": 1},
        draws=2,  # none: torch counts attention, of 2 layers, also without dropout
    ),
    mae_case(
        "mae dpp exact",
        masked(type="DPPMasking", method="exact"),
        calls={"DPPMasking": 1},
        draws=2,  # for the eigenvectors, then for the patches
        syncs=1,  # torch checks the eigendecomposition
    ),
    mae_case("mae grid", masked(type="GridMasking"), calls={"GridMasking": 1}, draws=1),
    mae_case("mae block", masked(type="BlockMasking"), calls={"BlockMasking": 1}, draws=2),
    mae_case("mae uniform", masked(type="UniformMasking"), calls={"UniformMasking": 1}, draws=1),
    mae_case(
        "mae colored noise", masked(type="ColoredNoiseMasking"), calls={"ColoredNoiseMasking": 1}
    ),
    mae_case(
        "mae hierarchical",
        masked(type="HierarchicalMasking", hierarchy={"grid": (8, 8)}),
        masked(type="HierarchicalMasking", hierarchy={"grid": (8, 8)}, level=0),
        calls={"HierarchicalMasking": 1},
        draws=2,  # one per level
    ),
    mae_case("umae", uniform(0.1), uniform(0.0), logged=("loss_uniformity",)),
    term_case(KoLeoLoss, "loss_koleo"),
    term_case(VarianceCovarianceLoss, *VICREG),
    mae_case(
        "mi-mae",
        mi_mae(4),
        mi_mae(1, cross_weight=0.0, input_weight=0.0),
        calls={"ComplementaryMasking": 1},
        logged=TERMS,
    ),
    mae_case("mae boundary", boundary(width_px=2), boundary(width_px=0)),
    Case(
        "hivit dpp",
        "mmpretrain",
        hivit("MaskedMAEHiViT", masking={"type": "DPPMasking", "tau": 0.5}),
        hivit("MaskedMAEHiViT"),
        STOCK_HIVIT,
        plain_hivit,
        calls={"DPPMasking": 1},
    ),
    Case(
        "simmim dpp",
        "mmpretrain",
        simmim({"type": "SimMIM"}, "DPPMaskGenerator", tau=0.5),
        simmim({"type": "SimMIM"}, "DPPMaskGenerator", tau=1.0),
        STOCK_SIMMIM,
        swin,
        calls=GENERATOR_CALLS,
        in_workers=True,
    ),
    Case(
        "simmim vit dpp",
        "mmpretrain",
        simmim({"type": "SimMIM"}, "DPPMaskGenerator", vit=True, tau=0.5),
        simmim({"type": "SimMIM"}, "DPPMaskGenerator", vit=True, tau=1.0),
        simmim({"type": "SimMIM"}, vit=True),  # SimMIMViT is ours: upstream has none
        vit,
        calls=GENERATOR_CALLS,
        in_workers=True,
    ),
    Case(
        "usimmim",
        "mmpretrain",
        simmim({"type": "USimMIM", "uniformity_weight": 0.1, "token": "mean"}),
        simmim({"type": "USimMIM", "uniformity_weight": 0.0, "token": "mean"}),
        STOCK_SIMMIM,
        swin,
        logged=("loss_uniformity",),
        in_workers=True,
    ),
    Case(
        "mi-simmim",
        "mmpretrain",
        mi_simmim(2),
        mi_simmim(1, cross_weight=0.0, input_weight=0.0),
        lambda: Setup(build_simmim({"type": RandomlyMasked}, vit=False), Images(64)),
        swin,
        calls={"ComplementaryMasking": 1},
        logged=TERMS,
    ),
    Case(
        "simmim boundary",
        "mmpretrain",
        boundary_simmim("BoundarySimMIMHead", width_px=2),
        boundary_simmim("BoundarySimMIMHead", width_px=0),
        boundary_simmim("SimMIMHead"),
        swin,
        in_workers=True,
    ),
    siamese_case("MoCo", syncs=2, once=("queue",)),
    siamese_case("BYOL", syncs=3),
    siamese_case("SimCLR", syncs=0),
    siamese_case("SimSiam", syncs=3),
    Case(
        "erasemask SimSiam",
        "mmpretrain",
        on=siamese_pair("SimSiam", True, **ERASED),
        neutral=siamese_pair("SimSiam", True),
        stock=siamese_pair("SimSiam", False),
        backbone=resnet,
        calls={"EraseMask": 1, "BlockMasking": 1},
        draws=3,  # blocks (2) and the rest
        logged=("loss_orig", "loss_erasemask"),
        syncs=2,
    ),
    Case(
        "mixmask classifier",
        "mmpretrain",
        classifier("MixMask", 1.0, grid_size=4),
        classifier("MixMask", 0.0, grid_size=4),
        classifier("CutMix", 0.0, alpha=1.0),
        resnet,
        calls={"MixMask": 1, "BlockMasking": 1},
        draws=4,  # permutation, blocks (2) and the rest
    ),
]
