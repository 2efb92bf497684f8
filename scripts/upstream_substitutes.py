"""Our classes in the place of upstream's: what to run, and the pytest plugin that puts them there.

``python -m pytest -p upstream_substitutes --substitute NAME --outcomes FILE`` imports upstream's
package, replaces in it (and in its registries) the names of ``SUBSTITUTES[NAME]`` before any test
is collected, and writes to FILE what became of each test and how often each substitute was used.
"""

from __future__ import annotations

import functools
import importlib
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SELFSUP = "tests/test_models/test_selfsup"
MODULES = "tests/models/modules"


@dataclass
class Row:
    """Some tests of a file, and the substitutes that they are run with after stock."""

    upstream: str
    file: str
    substitutes: list[str] = field(default_factory=list)
    select: str = ""  # pytest -k
    reason: str = ""  # why there is no substitute


ROWS = [
    Row("mmpretrain", f"{SELFSUP}/test_mae.py", ["RegularizedMAE", "UMAE", "MIMAE"]),
    Row("mmpretrain", f"{SELFSUP}/test_simmim.py", ["RegularizedSimMIM", "USimMIM", "MISimMIM"]),
    Row("mmpretrain", f"{SELFSUP}/test_moco.py", ["MixMaskMoCo"]),
    Row("mmpretrain", f"{SELFSUP}/test_mocov3.py", reason="no plugin for MoCo v3"),
    Row("mmpretrain", f"{SELFSUP}/test_byol.py", ["MixMaskBYOL"]),
    Row("mmpretrain", f"{SELFSUP}/test_simclr.py", ["MixMaskSimCLR"]),
    Row("mmpretrain", f"{SELFSUP}/test_simsiam.py", ["MixMaskSimSiam"]),
    Row(
        "mmpretrain",
        "tests/test_datasets/test_transforms/test_processing.py",
        ["DPPMaskGenerator(tau=1)", "DPPMaskGenerator()"],
        "MaskGenerator",
    ),
    Row(
        "lightly",
        "tests/models/test_ModelUtils.py",
        ["dpp masks(tau=1)", "dpp masks()"],
        "random_token_mask or (random_block_mask and not random_block_mask_image)",
    ),
    *(
        Row("lightly", f"{MODULES}/{name}.py", ["dpp masks(tau=1)", "dpp masks()"])
        for name in (
            "test_masked_autoencoder",
            "test_masked_vision_transformer_timm",
            "test_masked_vision_transformer_decoder_timm",
        )
    ),
    Row("lightly", "tests/loss/test_ntx_ent_loss.py", ["MixMaskLoss", "MixMaskLoss.frozen"]),
    Row(
        "lightly",
        "tests/loss/test_negative_cosine_similarity.py",
        ["MixMaskLoss", "MixMaskLoss.frozen"],
    ),
]

_NAME = "compares repr() with the stock class's own name and arguments"
_CLASS_TOKEN = "mask_class_token=True: a class token has no pixels to compare, ValueError by design"
_RATIO = "a ratio of 0 or 1 leaves nothing to draw, ValueError by design"

# What cannot pass with a substitute: part of the test's id, and why.
CANNOT_PASS = {
    "TestSimMIMMaskGenerator::test_repr": _NAME,
    "TestBEiTMaskGenerator::test_repr": _NAME,
    "test_random_token_mask__mask_class_token[5-0.5-True-3]": _CLASS_TOKEN,
    "test_random_token_mask__mask_class_token[257-0.75-True-193]": _CLASS_TOKEN,
    "TestModelUtils::test_random_token_mask": f"{_RATIO}; {_CLASS_TOKEN}",
    "test_random_block_mask__min_max_image_mask_ratio[0.0-0.0]": _RATIO,
    "test_random_block_mask__min_max_image_mask_ratio[1.0-1.0]": _RATIO,
}

used: Counter[str] = Counter()  # substitutes, by the name they replace


def _neutral(stock: str, cls: type, **settings: Any) -> type:
    """A class of stock's name that is ``cls`` with these defaults, counted when built."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        used[stock] += 1
        cls.__init__(self, *args, **{**settings, **kwargs})

    return type(stock, (cls,), {"__init__": __init__})


def _mmpretrain(**classes: tuple[str, dict[str, Any]]) -> Callable[[], None]:
    """Replace classes, in ``mmpretrain.models`` and the registry, by ours (name, settings)."""

    def substitute() -> None:
        from mmpretrain import models
        from mmpretrain.registry import MODELS

        ours = importlib.import_module("mim_plugins.mmpretrain")
        for stock, (name, settings) in classes.items():
            replaced = _neutral(stock, getattr(ours, name), **settings)
            MODELS.register_module(name=stock, module=replaced, force=True)
            if hasattr(models, stock):
                setattr(models, stock, replaced)

    return substitute


def _mask_generators(**settings: Any) -> None:
    """DPP mask generators on images of our own: the tests have none, or one of (3, H, W)."""
    import mmpretrain.datasets  # noqa: F401  (registers stock's)
    import numpy as np
    from mmpretrain.registry import TRANSFORMS

    from mim_plugins.mmpretrain import DPPMaskGenerator

    class OnOwnImage(DPPMaskGenerator):
        def transform(self, results: dict) -> dict:
            side = 32 * max(self.grid)
            image = np.random.randint(0, 256, (side, side, 3), np.uint8)  # noqa: NPY002
            results["mask"] = super().transform({"img": image})["mask"]
            return results

    for stock in ("SimMIMMaskGenerator", "BEiTMaskGenerator"):
        replaced = _neutral(stock, OnOwnImage, **settings)
        TRANSFORMS.register_module(name=stock, module=replaced, force=True)


def _mask_functions(**dpp: Any) -> None:
    """lightly's mask functions on images of our own: stock tests have none to pass."""
    import torch
    from lightly.models import utils

    from mim_plugins.lightly import dpp_block_mask, dpp_token_mask

    @functools.wraps(utils.random_token_mask)
    def random_token_mask(size: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
        used["random_token_mask"] += 1
        images = torch.rand(size[0], 3, 4, 4 * (size[1] - 1))
        images = images.view(size[0], 3, 4, -1, 4).transpose(2, 3).flatten(2, 3)
        return dpp_token_mask(images, size, *args, **dpp, **kwargs)

    @functools.wraps(utils.random_block_mask)
    def random_block_mask(
        size: tuple[int, int, int],
        batch_mask_ratio: float = 0.5,
        min_image_mask_ratio: float = 0.1,
        max_image_mask_ratio: float = 0.5,
        device: Any = None,
        **blocks: Any,
    ) -> Any:
        used["random_block_mask"] += 1
        images = torch.rand(size[0], 3, 4 * size[1], 4 * size[2])
        middle = (min_image_mask_ratio + max_image_mask_ratio) / 2
        variation = (max_image_mask_ratio - min_image_mask_ratio) / 2
        return dpp_block_mask(
            images, size, batch_mask_ratio, middle, variation, device=device, **dpp
        )

    utils.random_token_mask = random_token_mask
    utils.random_block_mask = random_block_mask


def _losses(frozen: bool = False) -> None:
    """``MixMaskLoss`` without a mix, or its criterion with the queue as it was."""
    from lightly import loss

    from mim_plugins.lightly import MixMaskLoss

    def around(name: str, stock: type) -> type:
        class Loss(MixMaskLoss):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                used[name] += 1
                super().__init__(stock(*args, **kwargs))

            def forward(self, query: Any, key: Any) -> Any:
                before = self.frozen()
                value = super().forward(query, key)
                return before(query, key) if frozen else value

        return Loss

    for name in ("NTXentLoss", "NegativeCosineSimilarity"):
        setattr(loss, name, around(name, getattr(loss, name)))


_HEAD = {"MAEPretrainHead": ("BoundaryMAEHead", {}), "MAEViT": ("MaskedMAEViT", {})}
_SIMMIM_HEAD = {"SimMIMHead": ("BoundarySimMIMHead", {})}
_NO_TERMS = {"cross_weight": 0.0, "output_weight": 0.0, "input_weight": 0.0}

SUBSTITUTES: dict[str, Callable[[], None]] = {
    "RegularizedMAE": _mmpretrain(MAE=("RegularizedMAE", {}), **_HEAD),
    "UMAE": _mmpretrain(MAE=("UMAE", {"uniformity_weight": 0.0}), **_HEAD),
    "MIMAE": _mmpretrain(MAE=("MIMAE", _NO_TERMS), **_HEAD),
    "RegularizedSimMIM": _mmpretrain(SimMIM=("RegularizedSimMIM", {}), **_SIMMIM_HEAD),
    "USimMIM": _mmpretrain(SimMIM=("USimMIM", {"uniformity_weight": 0.0}), **_SIMMIM_HEAD),
    "MISimMIM": _mmpretrain(
        SimMIM=("MISimMIM", {"masking": {"type": "RandomMasking"}, **_NO_TERMS}),
        **_SIMMIM_HEAD,
    ),
    **{
        f"MixMask{name}": _mmpretrain(**{name: (f"MixMask{name}", {})})
        for name in ("MoCo", "BYOL", "SimCLR", "SimSiam")
    },
    "DPPMaskGenerator(tau=1)": functools.partial(_mask_generators, tau=1.0),
    "DPPMaskGenerator()": _mask_generators,
    "dpp masks(tau=1)": functools.partial(_mask_functions, tau=1.0),
    "dpp masks()": _mask_functions,
    "MixMaskLoss": _losses,
    "MixMaskLoss.frozen": functools.partial(_losses, frozen=True),
}


# -- the plugin ----------------------------------------------------------------------------

outcomes: dict[str, tuple[str, str]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--upstream", help="package to import before the tests do")
    parser.addoption("--substitute", default="", help="a key of SUBSTITUTES; none: stock")
    parser.addoption("--outcomes", help="where to write what became of the tests")


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # Before a conftest.py can put the checkout, with a package of the same name, first.
    options = early_config.known_args_namespace
    importlib.import_module(options.upstream)
    if options.substitute:
        SUBSTITUTES[options.substitute]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Stock and ours on equal random inputs: some tests draw theirs without a seed.
    seed_all(zlib.crc32(item.name.encode()))


def seed_all(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "xfail"
        outcomes[report.nodeid] = ("skipped", reason.removeprefix("Skipped: "))
    elif report.failed:
        outcomes[report.nodeid] = ("failed", _last_line(report.longrepr))
    elif report.when == "call":
        outcomes.setdefault(report.nodeid, ("passed", ""))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[report.nodeid] = ("failed", _last_line(report.longrepr))


def _last_line(longrepr: Any) -> str:
    crash = getattr(longrepr, "reprcrash", None)
    return (crash.message if crash else str(longrepr).strip().splitlines()[-1]).splitlines()[0]


def pytest_sessionfinish(session: pytest.Session) -> None:
    package = importlib.import_module(session.config.option.upstream)
    result = {
        "version": package.__version__,
        "location": package.__file__,
        "outcomes": outcomes,
        "used": used,
    }
    Path(session.config.option.outcomes).write_text(json.dumps(result))
