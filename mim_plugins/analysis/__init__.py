"""What did masking make the model learn? Framework-free measurements."""

from .dpp import AlignmentDiversity, cooccurrence, mask_alignment_diversity
from .spectrum import effective_rank, singular_spectrum

__all__ = [
    "AlignmentDiversity",
    "cooccurrence",
    "effective_rank",
    "mask_alignment_diversity",
    "singular_spectrum",
]
