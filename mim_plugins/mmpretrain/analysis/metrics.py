"""Reconstruction scores through the stock ``tools/test.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.runner import TestLoop, autocast
from mmpretrain.registry import LOOPS, METRICS
from mmpretrain.structures import DataSample

from ..._check import check_bool
from ...analysis.reconstruction import SCORES, reconstruction_scores
from .features import unwrap
from .reconstruction import reconstruct


@LOOPS.register_module()
class ReconstructionTestLoop(TestLoop):
    """A test loop for models that predict no labels: stock MAE and SimMIM and their kin.

    Upstream's test loop asks a model for ``mode='predict'``, which its self-supervised
    algorithms lack. This one hands images and their reconstructions to the evaluator::

        test_cfg = dict(type='ReconstructionTestLoop')
        test_evaluator = dict(type='ReconstructionMetric')

    Args:
        *args, **kwargs: Those of ``TestLoop``.
        masked (bool): Whether the model draws its masks, or sees and predicts every patch;
            see :func:`~mim_plugins.mmpretrain.analysis.reconstruction.reconstruct`. Defaults to
            False, as in figure 5 of Kong et al. (CVPR 2023).
    """

    def __init__(self, *args: Any, masked: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masked = check_bool("masked", masked)

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Reconstruct one batch and hand it to the evaluator."""
        self.runner.call_hook("before_test_iter", batch_idx=idx, data_batch=data_batch)
        model = unwrap(self.runner.model)
        data = model.data_preprocessor(data_batch, False)
        with autocast(enabled=self.fp16):
            predicted, images = reconstruct(
                model, data["inputs"], data["data_samples"], self.masked
            )
        outputs = []
        for sample, reconstruction, image in zip(
            data["data_samples"], predicted, images, strict=True
        ):
            output = sample.clone() if isinstance(sample, DataSample) else DataSample()
            output.set_field(reconstruction, "reconstruction")
            output.set_field(image, "image")
            outputs.append(output)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            "after_test_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
        )


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """MSE, PSNR, SSIM and FSIM of reconstructions, each the mean over images.

    Reads ``reconstruction`` and ``image``, both ``(3, H, W)`` in [0, 1], of each sample, as
    :class:`ReconstructionTestLoop` writes them. See
    :func:`mim_plugins.analysis.reconstruction_scores` for the scores.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``. Defaults to ``'cpu'``.
        prefix (str, optional): Defaults to ``'reconstruction'``.
    """

    default_prefix = "reconstruction"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score one batch."""
        keys = ("reconstruction", "image")
        try:
            pair = [torch.stack([sample[key] for sample in data_samples]) for key in keys]
        except KeyError as key:
            raise ValueError(
                f"ReconstructionMetric found no {key} in a sample: set "
                "test_cfg = dict(type='ReconstructionTestLoop')"
            ) from None
        scores = reconstruction_scores(*pair)
        columns = torch.stack([scores[name] for name in SCORES], dim=1)
        self.results.extend(columns.cpu().double())

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Means over all images."""
        means = torch.stack(results).mean(dim=0).tolist()
        return dict(zip(SCORES, means, strict=True))
