"""What is added to the reconstruction loss? Framework-free terms."""

from .boundary import boundary_weights
from .bounds import club, infonce
from .mutual_information import MutualInformationLoss
from .terms import named_terms, term_losses
from .uniformity import UniformityLoss, global_feature, uniformity

__all__ = [
    "MutualInformationLoss",
    "UniformityLoss",
    "boundary_weights",
    "club",
    "global_feature",
    "infonce",
    "named_terms",
    "term_losses",
    "uniformity",
]
