"""Which patches are hidden? Framework-free mask generators, images to :class:`PatchMask`."""

from .base import Masking
from .complementary import ComplementaryMasking
from .dpp import DPPMasking, greedy_map, sample_kdpp
from .hierarchical import HierarchicalMasking
from .kernels import patch_kernel
from .patch_mask import PatchMask
from .simple import BlockMasking, GridMasking, RandomMasking

__all__ = [
    "BlockMasking",
    "ComplementaryMasking",
    "DPPMasking",
    "GridMasking",
    "HierarchicalMasking",
    "Masking",
    "PatchMask",
    "RandomMasking",
    "greedy_map",
    "patch_kernel",
    "sample_kdpp",
]
