"""The short name of :mod:`mim_plugins.mixing`."""

from .mixing import EraseMask, Mix, Mixer, MixMask, MixMaskLoss, UnMix, mix_views

__all__ = ["EraseMask", "Mix", "MixMask", "MixMaskLoss", "Mixer", "UnMix", "mix_views"]
