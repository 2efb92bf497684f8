"""Plugins for mmpretrain, found by its tools through one line of a config::

    custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)

Maskings are registered in ``TASK_UTILS``, data transforms in ``TRANSFORMS``, models in
``MODELS``. Importing this module also mends what breaks in the installed upstream, see
:mod:`mim_plugins.mmpretrain.remedies`.
"""

try:
    import mmengine  # noqa: F401
    import mmpretrain  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"mim_plugins.mmpretrain needs mmpretrain and mmengine ({error}): "
        "pip install 'mim_plugins[mmpretrain]'"
    ) from error

from mmpretrain.registry import TASK_UTILS

from .. import masking as _masking
from . import remedies
from .backbones import MaskedMAEViT
from .regularized import UMAE, RegularizedMAE, UniformityHead
from .transforms import DPPMaskGenerator

MASKINGS = ("RandomMasking", "GridMasking", "BlockMasking", "DPPMasking")

for _name in MASKINGS:
    TASK_UTILS.register_module(name=_name, module=getattr(_masking, _name), force=True)

remedies.apply()

__all__ = [
    "UMAE",
    "DPPMaskGenerator",
    "MaskedMAEViT",
    "RegularizedMAE",
    "UniformityHead",
    "remedies",
]
