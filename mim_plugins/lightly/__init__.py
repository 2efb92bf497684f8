"""Plugins for lightly: drop-in mask functions, and :func:`wrap` for unmodified modules."""

from .._versions import check_versions, importing

with importing("mim_plugins.lightly needs lightly and timm", "lightly"):
    import lightly
    import pytorch_lightning
    import timm
check_versions(lightly, timm, pytorch_lightning, extra="lightly")

from ..regularizers import MutualInformationLoss, UniformityLoss
from .analysis.feature_monitor import EffectiveRank, FeatureMonitor
from .analysis.hierarchical_masking import HierarchicalMaskingAnalyzer
from .analysis.mask_visualization import MaskVisualization, mask_picture
from .analysis.online_probe import OnlineProbe
from .masking import dpp_block_mask, dpp_token_mask, token_mask
from .mixing.mixing import MixMaskLoss
from .regularizers.boundary import BoundaryCriterion
from .resume import EpochSeed, MemoryBankCheckpoint
from .wrap import wrap

__all__ = [
    "BoundaryCriterion",
    "EffectiveRank",
    "EpochSeed",
    "FeatureMonitor",
    "HierarchicalMaskingAnalyzer",
    "MaskVisualization",
    "MemoryBankCheckpoint",
    "MixMaskLoss",
    "MutualInformationLoss",
    "OnlineProbe",
    "UniformityLoss",
    "dpp_block_mask",
    "dpp_token_mask",
    "mask_picture",
    "token_mask",
    "wrap",
]
