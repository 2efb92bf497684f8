"""Which pixels come from another image, and what is then the distance?"""

from .loss import MixMaskLoss, mixture
from .mixmask import EraseMask, Mix, Mixer, MixMask, UnMix, default_grid_size
from .norm import SplitBatchNorm

__all__ = [
    "EraseMask",
    "Mix",
    "MixMask",
    "MixMaskLoss",
    "Mixer",
    "SplitBatchNorm",
    "UnMix",
    "default_grid_size",
    "mixture",
]
