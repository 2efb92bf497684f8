"""What the hooks share: when they are due, and figures as images."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.runner import Runner

from ..._check import check_bool, check_int


class Interval:
    """Every so many epochs, or iterations, and at the end of training.

    Raises:
        TypeError, ValueError: If ``interval`` is no positive int, or ``by_epoch`` no bool.
    """

    def __init__(self, interval: int, by_epoch: bool) -> None:
        self.interval = check_int("interval", interval)
        self.by_epoch = check_bool("by_epoch", by_epoch)

    @property
    def unit(self) -> str:
        return "epoch" if self.by_epoch else "iteration"

    def after_epoch(self, runner: Runner) -> bool:
        """Whether an action is due after this epoch, ``runner.epoch`` counting from 0."""
        done = runner.epoch + 1
        return self.by_epoch and (done % self.interval == 0 or done == runner.max_epochs)

    def after_iter(self, runner: Runner) -> bool:
        """Whether an action is due after this iteration, ``runner.iter`` counting from 0."""
        done = runner.iter + 1
        return not self.by_epoch and (done % self.interval == 0 or done == runner.max_iters)


def figure_to_image(figure: Any) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB of a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
