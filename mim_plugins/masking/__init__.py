"""Which patches are hidden? Framework-free mask generators, images to :class:`PatchMask`."""

from .base import Masking
from .dpp import DPPMasking, greedy_map, sample_kdpp
from .kernels import patch_kernel
from .patch_mask import PatchMask
from .simple import BlockMasking, GridMasking, RandomMasking

__all__ = [
    "BlockMasking",
    "DPPMasking",
    "GridMasking",
    "Masking",
    "PatchMask",
    "RandomMasking",
    "greedy_map",
    "patch_kernel",
    "sample_kdpp",
]
