"""What did masking make the model learn? Framework-free measurements."""

from .spectrum import effective_rank, singular_spectrum

__all__ = ["effective_rank", "singular_spectrum"]
