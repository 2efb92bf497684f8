"""Which pixels come from another image: mixed views of a siamese step."""

from .mixing import Mixing, MixMaskLoss

__all__ = ["MixMaskLoss", "Mixing"]
