"""Plugins for mmpretrain, found by its tools through one line of a config::

    custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

Maskings are registered in ``TASK_UTILS``, data transforms in ``TRANSFORMS``, models in
``MODELS``. Importing this module also mends what breaks in the installed upstream, see
:mod:`mim_plugins.mmpretrain.remedies`.
"""

from inspect import isabstract

from .._versions import check_versions, importing

with importing("mim_plugins.mmpretrain needs mmpretrain and mmengine", "mmpretrain"):
    import mmengine
    import mmpretrain
check_versions(mmengine, mmpretrain, extra="mmpretrain")

from mmpretrain.registry import TASK_UTILS

from .. import masking as _masking
from . import remedies
from .analysis.feature_monitor import EffectiveRankHook, FeatureMonitorHook
from .analysis.hierarchical_masking import HierarchicalMaskingAnalyzer
from .analysis.mask_visualization import MaskVisualizationHook, mask_picture
from .analysis.metrics import ReconstructionMetric, ReconstructionTestLoop
from .analysis.online_probe import OnlineProbeHook
from .analysis.reconstruction import reconstruct
from .masking.backbones import MaskedMAEHiViT, MaskedMAEViT
from .masking.simmim_vit import SimMIMBEiTViT, SimMIMViT
from .masking.transforms import DPPMaskGenerator, MaskGenerator
from .mixing.algorithms import (
    MixMaskAugment,
    MixMaskBYOL,
    MixMaskMoCo,
    MixMaskSimCLR,
    MixMaskSimSiam,
)
from .pyramid import ViTPyramid
from .regularizers.algorithms import (
    UMAE,
    MutualInformationHead,
    RegularizedMAE,
    RegularizedSimMIM,
    UniformityHead,
    USimMIM,
)
from .regularizers.boundary import BoundaryMAEHead, BoundarySimMIMHead
from .regularizers.mi_mae import MIMAE, MISimMIM
from .resume import EpochSeedHook

for _name in _masking.__all__:
    _cls = getattr(_masking, _name)
    if isinstance(_cls, type) and issubclass(_cls, _masking.Masking) and not isabstract(_cls):
        TASK_UTILS.register_module(name=_name, module=_cls, force=True)

remedies.apply()

__all__ = [
    "MIMAE",
    "UMAE",
    "BoundaryMAEHead",
    "BoundarySimMIMHead",
    "DPPMaskGenerator",
    "EffectiveRankHook",
    "EpochSeedHook",
    "FeatureMonitorHook",
    "HierarchicalMaskingAnalyzer",
    "MISimMIM",
    "MaskGenerator",
    "MaskVisualizationHook",
    "MaskedMAEHiViT",
    "MaskedMAEViT",
    "MixMaskAugment",
    "MixMaskBYOL",
    "MixMaskMoCo",
    "MixMaskSimCLR",
    "MixMaskSimSiam",
    "MutualInformationHead",
    "OnlineProbeHook",
    "ReconstructionMetric",
    "ReconstructionTestLoop",
    "RegularizedMAE",
    "RegularizedSimMIM",
    "SimMIMBEiTViT",
    "SimMIMViT",
    "USimMIM",
    "UniformityHead",
    "ViTPyramid",
    "mask_picture",
    "reconstruct",
    "remedies",
]
