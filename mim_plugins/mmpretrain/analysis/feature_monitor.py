"""Figures of the features over training, such as their effective rank."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..._check import check_choice
from ..._pool import TOKENS
from ...analysis.monitors import FeatureWatch
from .features import build_loader, check_dataloader, extract_features, preprocess, unwrap
from .hook import MonitorHook


@HOOKS.register_module()
class FeatureMonitorHook(MonitorHook):
    """Publishes figures of the features of the same images, over training.

    Before training and every ``interval`` epochs the unmasked features of ``num_images``
    images are taken, see :func:`.features.extract_features`, and given to every monitor.
    Numbers are logged as ``analysis/<monitor>`` (log, message hub, visualizer), numbers and
    curves are drawn as the visualizer's image ``<name>`` and are lines of
    ``<work_dir>/<timestamp>/vis_data/<name>.jsonl``. They are saved in checkpoints under
    ``name``, so that a resumed run continues the figure.

    Only the first rank computes. Training stays bit for bit what it is without the hook;
    where the features have become NaN or infinite the numbers are NaN.

    Args:
        monitors (list): Names in ``mim_plugins.analysis.MONITORS``, or functions; see
            :func:`mim_plugins.analysis.monitor`.
        interval (int): Epochs, or iterations, between measurements. Defaults to 1.
        by_epoch (bool): Whether ``interval`` counts epochs. Defaults to True.
        num_images (int): Number of images, at least 2. Defaults to 100.
        dataloader (dict, optional): Data loader config, with ``dataset`` and ``batch_size``,
            whose images are taken, evenly spaced. Defaults to None: the training data set,
            through its own pipeline. Monitors that compare views of an image get them by
            taking it several times, so that the pipeline must be random.
        token (str): Which feature a vision transformer has: ``'cls'``, ``'mean'`` of the
            patches, or ``'auto'``: [CLS] if there is one. Defaults to ``'auto'``.
        batch_size (int): Images encoded at once. Defaults to 50.
        name (str): Of the file, the image and the entry of checkpoints. Defaults to
            ``'feature_monitor'``.

    Raises:
        TypeError, ValueError: If an argument is out of range; before training, if the data
            set has fewer than 2 images, or not the views that a monitor needs.

    Example::

        custom_hooks = [dict(type='FeatureMonitorHook', monitors=['effective_rank'])]
    """

    drawn = True

    def __init__(
        self,
        monitors: list,
        *,
        interval: int = 1,
        by_epoch: bool = True,
        num_images: int = 100,
        dataloader: dict | None = None,
        token: str = "auto",
        batch_size: int = 50,
        name: str = "feature_monitor",
    ) -> None:
        super().__init__(name, interval, by_epoch)
        self.watch = FeatureWatch(monitors, num_images, batch_size)
        self.token = check_choice("token", token, TOKENS)
        self.dataloader = check_dataloader("dataloader", dataloader)

    def before_train(self, runner: Runner) -> None:
        """Pick the images; measure the untrained features."""
        if not is_main_process():
            return
        loader = runner.train_dataloader
        if self.dataloader is not None:
            loader = build_loader(runner, self.dataloader)

        def collate(items: list) -> Tensor:
            return preprocess(unwrap(runner.model), loader.collate_fn(items))[0].cpu()

        self.watch.take(loader.dataset, collate)
        if runner.iter == 0:
            self.measure(runner, step=0)

    def figures(self, runner: Runner) -> dict[str, Any]:
        """What the monitors say of the features; on the first rank."""
        if not is_main_process():
            return {}
        return self.watch.measure(lambda images: extract_features(runner, images, self.token))


@HOOKS.register_module()
class EffectiveRankHook(FeatureMonitorHook):
    """Shows whether features collapse: their effective rank and singular spectrum.

    :class:`FeatureMonitorHook` with these two monitors and the name ``singular_spectrum``, in
    checkpoints ``effective_rank``.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, figures 1b and 1c, appendix B.1 (100 images).

    Args:
        **options: Those of :class:`FeatureMonitorHook`, but ``monitors`` and ``name``.
    """

    def __init__(self, **options: Any) -> None:
        monitors = ["effective_rank", "singular_spectrum"]
        super().__init__(monitors, name="singular_spectrum", **options)
        self.key = "effective_rank"
