"""What is added to the reconstruction loss? Framework-free terms."""

from .uniformity import UniformityLoss, global_feature, uniformity

__all__ = ["UniformityLoss", "global_feature", "uniformity"]
