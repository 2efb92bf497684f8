"""What is added to the reconstruction loss? Framework-free terms."""

from .boundary import boundary_weights
from .bounds import club, infonce
from .koleo import KoLeoLoss
from .mutual_information import MutualInformationLoss
from .step import FeatureTerm, Step, Term, named_terms, term_losses
from .uniformity import UniformityLoss, uniformity
from .variance_covariance import VarianceCovarianceLoss

__all__ = [
    "FeatureTerm",
    "KoLeoLoss",
    "MutualInformationLoss",
    "Step",
    "Term",
    "UniformityLoss",
    "VarianceCovarianceLoss",
    "boundary_weights",
    "club",
    "infonce",
    "named_terms",
    "term_losses",
    "uniformity",
]
