"""KoLeo: keep every feature away from its nearest neighbour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import gather_rows
from .step import FeatureTerm

_EPS = 1e-8  # of the logarithm: a duplicate counts 18.4, and has no gradient


class KoLeoLoss(FeatureTerm):
    """``weight`` times the Kozachenko-Leonenko estimate of minus the features' entropy.

    Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019, section 3: the
    mean of ``-log`` of each l2-normalised feature's distance to its nearest neighbour, as used
    by Oquab et al., "DINOv2", 2023. Neighbours are looked for in the batch of all ranks.
    One image alone gives 0.

    See :class:`FeatureTerm` for arguments and errors. DINOv2's weight is 0.1, on [CLS].
    """

    name = "koleo"

    def of_features(self, features: Tensor) -> Tensor:
        """Mean over ``(B, D)``; its mean over the ranks is that of the global batch."""
        unit = F.normalize(features, dim=1)
        others, start = gather_rows(unit) if self.gather_distributed else (unit, 0)
        if len(others) == 1:
            return unit.sum() * 0.0
        with torch.no_grad():
            similarity = unit @ others.T
            similarity.diagonal(start).fill_(-2.0)  # but itself
            nearest = similarity.argmax(dim=1)
        distance = torch.linalg.vector_norm(unit - others[nearest], dim=1)
        return -(distance + _EPS).log().mean()
