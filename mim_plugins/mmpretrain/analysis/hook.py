"""What the hooks share: when they are due, and where their figures go."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..._check import check_bool, check_int
from ...analysis.history import History


class IntervalHook(Hook):
    """Acts every so many epochs, or iterations, and at the end of training.

    Raises:
        TypeError, ValueError: If ``interval`` is no positive int, or ``by_epoch`` no bool.
    """

    def __init__(self, interval: int, by_epoch: bool) -> None:
        self.interval = check_int("interval", interval)
        self.by_epoch = check_bool("by_epoch", by_epoch)

    def due_after_iter(self, runner: Runner) -> bool:
        """Whether an action is due after this iteration, where iterations are counted."""
        due = self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)
        return due and not self.by_epoch


class MonitorHook(IntervalHook):
    """Schedules and publishes; what is measured is :meth:`figures`, which subclasses give.

    Numbers are logged as ``<prefix>/<name>`` (log, message hub, visualizer), and everything is
    a line of ``<work_dir>/<timestamp>/vis_data/<name>.jsonl`` and saved in checkpoints under
    ``name``, so that a resumed run continues its history.

    Args:
        name: Of the file, the figure and the entry of checkpoints.
        interval: Epochs, or iterations, between measurements.
        by_epoch: Whether ``interval`` counts epochs.

    Attributes:
        prefix: Of the published numbers.
        key: Of checkpoints, ``name`` unless a subclass sets another.
        drawn: Whether the history is also published as the image ``<name>``.
    """

    prefix = "analysis"
    drawn = False

    def __init__(self, name: str, interval: int, by_epoch: bool) -> None:
        super().__init__(interval, by_epoch)
        self.history = History(name)
        self.key = name

    def figures(self, runner: Runner) -> dict[str, Any]:
        """What to publish now: numbers, and curves as lists; empty for nothing."""
        raise NotImplementedError

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure, every ``interval`` epochs."""
        due = self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)
        if due and self.by_epoch:
            self.measure(runner, step=runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Measure, every ``interval`` iterations if so configured."""
        if self.due_after_iter(runner):
            self.measure(runner, step=runner.iter + 1)

    def measure(self, runner: Runner, step: int) -> dict[str, float]:
        """Measure, publish and return the numbers."""
        figures = self.figures(runner)
        if not figures:
            return {}
        folder = Path(runner.log_dir, "vis_data") if is_main_process() else None
        numbers = self.history.add(figures, step, runner.iter, folder)
        logged = {f"{self.prefix}/{name}": value for name, value in numbers.items()}
        for name, value in logged.items():
            runner.message_hub.update_scalar(name, value)
        if logged:
            runner.visualizer.add_scalars(logged, step=step)
        unit = "epoch" if self.by_epoch else "iteration"
        text = ", ".join(f"{name} {value:.4g}" for name, value in logged.items())
        runner.logger.info(f"{unit} {step}: {text}")
        if self.drawn:
            image = figure_to_image(self.history.draw(unit))
            runner.visualizer.add_image(self.history.name, image, step=step)
            gc.collect()  # a figure is megabytes of reference cycles, which Python leaves for long
        return numbers

    def state(self) -> Any:
        """What checkpoints hold."""
        return self.history.entries

    def load(self, state: Any) -> None:
        """Continue from what a checkpoint holds."""
        self.history.entries = list(state)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what was measured."""
        checkpoint[self.key] = self.state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue, when resuming, from what was measured."""
        if runner._resume and self.key in checkpoint:
            self.load(checkpoint[self.key])


def figure_to_image(figure: Any) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB of a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
