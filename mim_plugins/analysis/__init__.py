"""What did masking make the model learn? Framework-free measurements."""

from ..masking.hierarchy import LatentHierarchy
from .abstraction import (
    AbstractionProfile,
    MaskAbstraction,
    abstraction_profile,
    mask_abstraction,
    plot_abstraction_profile,
)
from .attention import attention_map, last_layer_attention, plot_attention
from .class_distances import ClassDistances, class_distances, plot_class_distances
from .dpp import AlignmentDiversity, cooccurrence, mask_alignment_diversity
from .embedding import linear_separability, plot_embeddings, tsne
from .hierarchical_images import HierarchicalImages, write_hierarchical_folder
from .history import History, plot_history
from .knn import knn_top1
from .linear_probe import LinearProbe
from .mask_graph import MaskGraph, mask_graph
from .mask_tradeoff import MaskTradeoff, mask_tradeoff, plot_mask_tradeoff
from .mean_classifier import mean_classifier, mean_classifier_accuracy
from .monitors import MONITORS, monitor
from .mosaic import mask_mosaic
from .reconstruction import reconstruction_scores
from .shared_latents import SharedLatents, shared_latents
from .spectrum import alpha_req, effective_rank, lidar, rankme, singular_spectrum

__all__ = [
    "MONITORS",
    "AbstractionProfile",
    "AlignmentDiversity",
    "ClassDistances",
    "HierarchicalImages",
    "History",
    "LatentHierarchy",
    "LinearProbe",
    "MaskAbstraction",
    "MaskGraph",
    "MaskTradeoff",
    "SharedLatents",
    "abstraction_profile",
    "alpha_req",
    "attention_map",
    "class_distances",
    "cooccurrence",
    "effective_rank",
    "knn_top1",
    "last_layer_attention",
    "lidar",
    "linear_separability",
    "mask_abstraction",
    "mask_alignment_diversity",
    "mask_graph",
    "mask_mosaic",
    "mask_tradeoff",
    "mean_classifier",
    "mean_classifier_accuracy",
    "monitor",
    "plot_abstraction_profile",
    "plot_attention",
    "plot_class_distances",
    "plot_embeddings",
    "plot_history",
    "plot_mask_tradeoff",
    "rankme",
    "reconstruction_scores",
    "shared_latents",
    "singular_spectrum",
    "tsne",
    "write_hierarchical_folder",
]
