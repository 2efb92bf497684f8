"""What did masking make the model learn? Framework-free measurements."""

from .class_distances import ClassDistances, class_distances, plot_class_distances
from .dpp import AlignmentDiversity, cooccurrence, mask_alignment_diversity
from .mask_graph import MaskGraph, mask_graph
from .mask_tradeoff import MaskTradeoff, mask_tradeoff, plot_mask_tradeoff
from .mean_classifier import mean_classifier, mean_classifier_accuracy
from .spectrum import effective_rank, singular_spectrum

__all__ = [
    "AlignmentDiversity",
    "ClassDistances",
    "MaskGraph",
    "MaskTradeoff",
    "class_distances",
    "cooccurrence",
    "effective_rank",
    "mask_alignment_diversity",
    "mask_graph",
    "mask_tradeoff",
    "mean_classifier",
    "mean_classifier_accuracy",
    "plot_class_distances",
    "plot_mask_tradeoff",
    "singular_spectrum",
]
