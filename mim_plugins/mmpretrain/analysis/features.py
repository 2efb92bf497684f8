"""Features of whole images from any self-supervised algorithm, while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapperDict
from mmengine.runner import Runner, autocast
from mmpretrain.models import VisionTransformer
from mmpretrain.models.selfsup import MAE, MAEHiViT, MAEViT, MFFViT, SparK
from mmpretrain.models.utils import TwoNormDataPreprocessor
from mmpretrain.models.utils.sparse_modules import SparseHelper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..._observe import observing, preserve_rng
from ..._pool import pool
from ..encoders import num_prefix_tokens


def unwrap(model: nn.Module) -> Any:
    """The algorithm inside a (distributed) model wrapper."""
    return model.module if is_model_wrapper(model) else model


def first_view(inputs: Tensor | list[Tensor]) -> Tensor:
    """Images ``(B, C, H, W)``: of several views, or of an image and its target, the first."""
    return inputs if isinstance(inputs, Tensor) else inputs[0]


def preprocess(model: Any, batch: dict) -> tuple[Tensor, Any]:
    """What the algorithm's own preprocessor makes of a batch of a data loader.

    Returns:
        The first view, ``(B, C, H, W)``, and the data samples, if there are any.
    """
    inputs = batch["inputs"]
    if isinstance(model.data_preprocessor, TwoNormDataPreprocessor) and isinstance(inputs, Tensor):
        inputs = [inputs, inputs]  # it insists on an image and its target
    data = model.data_preprocessor({**batch, "inputs": inputs}, False)
    return first_view(data["inputs"]), data.get("data_samples")


def extract_features(
    runner: Runner,
    images: Tensor,
    token: str = "auto",
    *,
    projection: bool = False,
    masked: bool = False,
) -> Tensor:
    """One feature per image from the unmasked images, in evaluation mode, without gradients.

    The features are those of the algorithm's own ``extract_feat``, the last output where
    there are several. Precision is that of training (AMP). Weights, buffers, modes and
    random states stay as they are.

    Args:
        runner: Its model may be wrapped for distributed training.
        images: ``(B, C, H, W)``, preprocessed, on any device.
        token: See :func:`mim_plugins._observe.pool`.
        projection: Take the output of the model's neck on them, as MoCo's queue does.
        masked: Encode the images under masks of the backbone, one of MAE.

    Returns:
        ``(B, D)`` float32.

    Raises:
        TypeError: If the model's weights are sharded over the processes, or its backbone
            draws no masks.
    """
    if isinstance(runner.model, FullyShardedDataParallel):
        raise TypeError(
            "features cannot be taken from a model whose weights are sharded (FSDP): remove "
            "EffectiveRankHook, FeatureMonitorHook and OnlineProbeHook from custom_hooks, or "
            "train with DDP"
        )
    model = unwrap(runner.model)
    images = images.to(next(model.parameters()).device)
    with observing(model), _autocast(runner):
        if masked and not isinstance(model.backbone, MAEViT | MAEHiViT):
            kind = type(model.backbone).__name__
            raise TypeError(f"masked=True needs a backbone of MAE, which draws masks, got {kind}")
        output = model.backbone(images)[0][: len(images)] if masked else _encode(model, images)
        if projection:
            if isinstance(model, MAE):
                raise ValueError(
                    "projection=True needs an algorithm whose neck projects features (MoCo), got "
                    f"{type(model).__name__}"
                )
            return model.neck(output)[0].float()
        if isinstance(output, list | tuple):
            output = output[-1]
        return pool(output, token, num_prefix_tokens(model.backbone)).float()


def _encode(model: Any, images: Tensor) -> Any:
    if isinstance(model.backbone, MFFViT):
        # Its forward(mask=None) masks all the same.
        return VisionTransformer.forward(model.backbone, images)
    if isinstance(model, SparK):
        # Sparse layers look up the mask of the last step in a global.
        active = SparseHelper._cur_active
        SparseHelper._cur_active = images.new_ones(len(images), 1, 1, 1, dtype=torch.bool)
        try:
            return model.extract_feat(images)
        finally:
            SparseHelper._cur_active = active
    return model.extract_feat(images)


def _autocast(runner: Runner) -> Any:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        wrapper = next(iter(wrapper.values()))
    if isinstance(wrapper, AmpOptimWrapper):
        return autocast(dtype=wrapper.cast_dtype)
    return nullcontext()


class StepCapture:
    """Keeps the preprocessed batch of one step, and what parts of the model get and return.

    Args:
        model: The algorithm.
        *parts: Names of its modules; one that it lacks gives nothing.
    """

    def __init__(self, model: nn.Module, *parts: str) -> None:
        self.kept: dict[str, Any] = {}
        modules = {name: getattr(model, name, None) for name in ("data_preprocessor", *parts)}
        self._handles = [
            module.register_forward_hook(partial(self._keep, name))
            for name, module in modules.items()
            if isinstance(module, nn.Module)
        ]

    def _keep(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        self.kept.setdefault(name, output)
        self.kept.setdefault(f"{name} args", args)

    def release(self) -> tuple[dict, dict[str, Any]]:
        """Remove the hooks, and give the batch and the outputs of the parts away.

        Raises:
            RuntimeError: If the step never called its preprocessor.
        """
        for handle in self._handles:
            handle.remove()
        kept, self.kept = self.kept, {}
        if "data_preprocessor" not in kept:
            raise RuntimeError(
                "the training step did not call the model's data_preprocessor: hooks of "
                "mim_plugins need train_step() of mmengine's BaseModel"
            )
        return kept.pop("data_preprocessor"), kept


def check_dataloader(name: str, value: Any) -> Any:
    """``value`` if it is the config of a data loader or None, else TypeError."""
    is_config = isinstance(value, Mapping) and {"dataset", "batch_size"} <= set(value)
    if value is not None and not is_config:
        raise TypeError(f"{name} must be a config with 'dataset' and 'batch_size', got {value!r}")
    return value


def build_loader(runner: Runner, dataloader: dict) -> Any:
    """Build a data loader for evaluation: in order, and collated as the preprocessors want it.

    No random number is drawn from the run's.
    """
    defaults = {
        "num_workers": 0,
        "persistent_workers": False,
        "drop_last": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": {"type": "default_collate"},
    }
    with preserve_rng(seed=0):
        return runner.build_dataloader({**defaults, **dataloader})
