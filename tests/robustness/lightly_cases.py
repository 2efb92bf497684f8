"""Rows of the table: plugins for lightly, on modules of the shape of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.models import utils
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset

from examples_lightly.ibot_dpp import IBOT
from mim_plugins.lightly import (
    BoundaryCriterion,
    MixMaskLoss,
    MutualInformationLoss,
    UniformityLoss,
    dpp_token_mask,
    wrap,
)
from mim_plugins.masking import (
    BlockMasking,
    ColoredNoiseMasking,
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    HierarchicalMasking,
    Masking,
    RandomMasking,
    UniformMasking,
)
from mim_plugins.mixmask import EraseMask, Mixer, MixMask, UnMix
from mim_plugins.regularizers import KoLeoLoss, Term, VarianceCovarianceLoss

from ..lightly import siamese
from ..lightly.modules import MAE
from ..lightly.regularizers.test_boundary import SimMIM
from .case import Builder, Case
from .training import Setup

NUMBER = 32


class Images(Dataset):
    """Views, label and file name, as lightly's data sets; equal in every epoch and worker."""

    def __init__(self, *sizes: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.views = []
        for size in sizes:
            coarse = torch.rand(NUMBER, 3, size // 8, size // 8, generator=generator)
            fine = torch.rand(NUMBER, 3, size, size, generator=generator)
            coarse = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
            self.views.append(0.8 * coarse + 0.2 * fine)

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, index: int) -> tuple:
        return [view[index] for view in self.views], index % 3, f"{index}.png"


def module(
    make: Callable[[], nn.Module],
    *sizes: int,
    change: Callable[[Any], Any] = lambda model: None,
    **plugins: Any,
) -> Builder:
    """A module under a fixed seed, changed and wrapped; ``plugins`` are made anew each time."""

    def build() -> Setup:
        torch.manual_seed(0)
        model = make()
        change(model)
        if plugins:
            wrap(model, **{name: plugin() for name, plugin in plugins.items()})
        return Setup(model, Images(*sizes))

    return build


# -- masked image modelling ----------------------------------------------------------------


class TrainableSimMIM(SimMIM):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class OwnLoop(MAE):
    """A training step of one's own, with lightly's mask function or the drop-in."""

    tau: float | None = None

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        images = batch[0][0]
        size = (len(images), self.sequence_length)
        if self.tau is None:
            idx_keep, idx_mask = utils.random_token_mask(
                size=size, mask_ratio=0.75, device=images.device
            )
        else:
            idx_keep, idx_mask = dpp_token_mask(images, size=size, mask_ratio=0.75, tau=self.tau)
        encoded = self.decoder_embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        tokens = encoded.new_zeros(len(images), self.sequence_length, 32)
        decoded = self.decoder(utils.set_at_index(tokens, idx_keep, encoded), idx_mask=idx_mask)
        prediction = self.prediction_head(utils.get_at_index(decoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        return self.criterion(prediction, target)


def mae(**plugins: Any) -> Builder:
    return module(MAE, 32, **plugins)


def masked(masking: Callable[..., Masking], **arguments: Any) -> Builder:
    return mae(masking=lambda: masking(patch_size=4, **arguments))


def own_loop(tau: float | None) -> Builder:
    return module(OwnLoop, 32, change=lambda model: setattr(model, "tau", tau))


def boundary(make: Callable[[], nn.Module], width_px: int) -> Builder:
    def change(model: Any) -> None:
        model.criterion = BoundaryCriterion(model, width_px)

    return module(make, 32, change=change)


def terms(**weights: float) -> list[nn.Module]:
    return [MutualInformationLoss(32, hidden_dim=16, projection_dim=8, **weights)]


def ibot() -> pl.LightningModule:
    vit = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2, dynamic_img_size=True
    )
    model = IBOT(vit, output_dim=64)
    for head in (model.student_head, model.teacher_head):
        head.train()
    return model


def timm_vit() -> tuple[nn.Module, str]:
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    return vit, "backbone.vit."


def torchvision_vit() -> tuple[nn.Module, str]:
    return SimMIM().backbone.vit, "backbone.vit."


VICREG = tuple(f"loss_variance_covariance_{term}" for term in ("variance", "covariance"))
STOCK_MAE = mae()
TERMS = (
    *(f"loss_mutual_information_{term}" for term in ("cross", "input", "variational")),
    *(f"mutual_information_{term}" for term in ("cross", "input")),
)


def mae_case(
    name: str,
    on: Builder,
    neutral: Builder = masked(RandomMasking),  # noqa: B008
    stock: Builder = STOCK_MAE,
    **expected: Any,
) -> Case:
    return Case(name, "lightly", on, neutral, stock, timm_vit, **expected)


def term_case(term: type[Term], *logged: str) -> Case:
    on, neutral = (mae(regularizers=lambda weight=weight: [term(weight)]) for weight in (0.1, 0.0))
    return mae_case(term.name, on, neutral, logged=logged)


# -- siamese -------------------------------------------------------------------------------


class OwnMoCo(siamese.MoCo):
    """MoCo with the loss around its criterion, in a training step of one's own."""

    mixing: MixMask | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = batch[0]
        query = self.query(views[1])
        utils.update_momentum(self.backbone, self.key_backbone, m=0.9)
        utils.update_momentum(self.projection_head, self.key_projection_head, m=0.9)
        key = self.key(views[0])
        if self.mixing is None:
            return self.criterion(query, key)
        mix = self.mixing(views[1])
        return MixMaskLoss(self.criterion)(query, key, (self.query(mix.images), mix))


def siamese_case(
    make: type,
    once: tuple[str, ...] = (),
    draws: int = 5,
    mixing: type[Mixer] = MixMask,
    unmix: type[UnMix] | None = UnMix,
    syncs: int = 0,
) -> Case:
    def distinct(model: nn.Module) -> None:
        """Else the first moving average changes nothing."""
        for name, parameter in model.named_parameters():
            if name.startswith(once or ("-",)):
                parameter.data.mul_(0.9)

    def build(**plugins: Any) -> Builder:
        return module(make, 32, 32, change=distinct, **plugins)

    plugins = {"mixing": mixing, **({"unmix": unmix} if unmix else {})}
    mixers = {plugin.__name__: 1 for plugin in plugins.values()}
    return Case(
        f"{mixing.__name__.lower()} {make.__name__}",
        "lightly",
        on=build(**plugins),
        neutral=None,
        stock=build(),
        backbone=lambda: (siamese.backbone(), "backbone."),
        calls={"BlockMasking": 1, **mixers},
        draws=draws,
        logged=tuple(f"loss_{name.lower()}" for name in mixers),
        syncs=syncs,
        once=once,
        no_neutral="wrap() without mixing is refused: the module as it is is the neutral setting",
    )


# -- the table -----------------------------------------------------------------------------

CASES = [
    mae_case(
        "mae dpp", masked(DPPMasking, tau=0.5), masked(DPPMasking, tau=1.0), calls={"DPPMasking": 1}
    ),
    mae_case(
        "mae dpp encoder",
        masked(DPPMasking, tau=0.5, features="encoder"),
        masked(DPPMasking, tau=1.0, features="encoder"),
        calls={"DPPMasking": 1},
        draws=1,  # none: torch counts attention, of 1 layer, also without dropout
    ),
    mae_case("mae random", masked(RandomMasking, mask_unit=8), calls={"RandomMasking": 1}),
    mae_case("mae grid", masked(GridMasking), calls={"GridMasking": 1}, draws=1),
    mae_case("mae uniform", masked(UniformMasking), calls={"UniformMasking": 1}, draws=1),
    mae_case("mae colored noise", masked(ColoredNoiseMasking), calls={"ColoredNoiseMasking": 1}),
    mae_case(
        "mae block", masked(BlockMasking, mask_ratio=0.75), calls={"BlockMasking": 1}, draws=2
    ),
    mae_case(
        "mae hierarchical",
        masked(HierarchicalMasking, hierarchy={"grid": (8, 8)}),
        masked(HierarchicalMasking, hierarchy={"grid": (8, 8)}, level=0),
        calls={"HierarchicalMasking": 1},
        draws=2,
    ),
    term_case(UniformityLoss, "loss_uniformity"),
    term_case(KoLeoLoss, "loss_koleo"),
    term_case(VarianceCovarianceLoss, *VICREG),
    mae_case(
        "mi-mae",
        mae(masking=lambda: ComplementaryMasking(4, patch_size=4), regularizers=terms),
        mae(
            masking=lambda: ComplementaryMasking(1, patch_size=4),
            regularizers=lambda: terms(cross_weight=0.0, input_weight=0.0),
        ),
        calls={"ComplementaryMasking": 1},
        logged=TERMS,
    ),
    mae_case("mae boundary", boundary(MAE, 1), boundary(MAE, 0)),
    mae_case(
        "dpp_token_mask", own_loop(0.5), own_loop(1.0), own_loop(None), calls={"DPPMasking": 1}
    ),
    Case(
        "simmim dpp",
        "lightly",
        module(TrainableSimMIM, 32, masking=lambda: DPPMasking(patch_size=8, tau=0.5)),
        module(TrainableSimMIM, 32, masking=lambda: DPPMasking(patch_size=8, tau=1.0)),
        module(TrainableSimMIM, 32),
        torchvision_vit,
        calls={"DPPMasking": 1},
    ),
    Case(
        "ibot dpp",
        "lightly",
        module(ibot, 32, 32, 16, masking=lambda: DPPMasking(mask_ratio=0.7, patch_size=4, tau=0.5)),
        None,
        module(ibot, 32, 32, 16),
        lambda: (ibot().teacher_backbone.vit, "teacher_backbone.vit."),
        calls={"DPPMasking": 1},
        draws=3,
        host_draws=False,  # stock blocks are drawn with Python's generator
        once=("teacher_", "cls_criterion.center"),
        no_neutral="iBOT draws blocks, as no masking of this package does bit for bit",
    ),
    # The step is repeated for its queries, and shuffles keys that it does not encode again.
    siamese_case(siamese.MoCo, once=("key_", "criterion.memory_bank"), draws=7),
    siamese_case(siamese.BYOL, once=("teacher.",)),
    siamese_case(siamese.SimCLR, syncs=16),  # boolean indices, as its loss has
    siamese_case(siamese.SimSiam),
    siamese_case(siamese.SimSiam, mixing=EraseMask, unmix=None, draws=3),
    Case(
        "MixMaskLoss",
        "lightly",
        module(OwnMoCo, 32, 32, change=lambda model: setattr(model, "mixing", MixMask())),
        None,
        module(OwnMoCo, 32, 32),
        lambda: (siamese.backbone(), "backbone."),
        calls={"MixMask": 1, "BlockMasking": 1},
        draws=3,
        once=("key_", "criterion.memory_bank"),
        no_neutral="a loss without mixes is the criterion itself, see tests/test_mixmask.py",
    ),
]
