"""Which pixels come from another image, and what is then the distance?"""

from .loss import MixMaskLoss
from .mixmask import EraseMask, Mix, Mixer, MixMask, UnMix, mix_views

__all__ = ["EraseMask", "Mix", "MixMask", "MixMaskLoss", "Mixer", "UnMix", "mix_views"]
