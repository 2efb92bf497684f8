"""Which patches are hidden? Framework-free mask generators, images to :class:`PatchMask`."""

from .base import Masking
from .colored_noise import ColoredNoiseMasking
from .complementary import ComplementaryMasking
from .dpp import DPPMasking, greedy_map, sample_kdpp, sample_kdpp_dual
from .hierarchical import HierarchicalMasking
from .kernels import patch_kernel
from .patch_mask import PatchMask
from .simple import BlockMasking, GridMasking, RandomMasking
from .uniform import UniformMasking

__all__ = [
    "BlockMasking",
    "ColoredNoiseMasking",
    "ComplementaryMasking",
    "DPPMasking",
    "GridMasking",
    "HierarchicalMasking",
    "Masking",
    "PatchMask",
    "RandomMasking",
    "UniformMasking",
    "greedy_map",
    "patch_kernel",
    "sample_kdpp",
    "sample_kdpp_dual",
]
