"""Instruments that attach to training without touching the model, registered in HOOKS."""

from .effective_rank import EffectiveRankHook
from .epoch_seed import EpochSeedHook
from .mask_visualization import MaskVisualizationHook
from .online_probe import OnlineProbeHook

__all__ = ["EffectiveRankHook", "EpochSeedHook", "MaskVisualizationHook", "OnlineProbeHook"]
