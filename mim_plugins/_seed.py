"""Seeds from which a run interrupted between two epochs can be continued."""

from __future__ import annotations

import numpy as np


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed in [0, 2**31) for one epoch and rank, unrelated to those of others.

    ``seed + epoch + rank`` would give epoch 1 of rank 0 the numbers of epoch 0 of rank 1.
    """
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0]) >> 1


def check_loader(loader: object) -> None:
    """Raise ValueError if the workers of ``loader`` outlive an epoch, states and all."""
    if getattr(loader, "num_workers", 0) and getattr(loader, "persistent_workers", False):
        raise ValueError(
            "persistent_workers must be False, or num_workers 0: nobody can restore the random "
            "states of workers that outlive an epoch"
        )
