"""The blocks of README.md do what they say."""

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.M)


def block(text: str) -> str:
    (found,) = [each for each in BLOCKS if text in each]
    return found


def test_mmpretrain(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from mmengine.config import Config
    from mmpretrain.registry import HOOKS, MODELS

    import mim_plugins.mmpretrain  # noqa: F401

    base, lines = block("_base_ ="), block("type='UMAE'")
    moco = base.replace(
        "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k",
        "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k",
    )
    changes = re.split(r"^(?=model|custom_hooks)", lines, flags=re.M)[1:]
    assert len(changes) == 4
    built = []
    for number, change in enumerate(["", *changes]):
        path = tmp_path / f"config{number}.py"
        stock = moco if "MoCo" in change else base
        if change.startswith("model"):
            stock = re.sub(r"^model = .*$", "", stock, flags=re.M)
        path.write_text(stock + change)
        config = Config.fromfile(path)
        built.append(type(MODELS.build(config.model)).__name__)
        if "custom_hooks" in change:
            assert HOOKS.build(config.custom_hooks[0]) is not None
    assert built == ["MAE", "UMAE", "MIMAE", "MixMaskMoCo", "MAE"]


def test_core_and_lightly() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    from .lightly.modules import MAE
    from .lightly.siamese import MoCo

    wrapped = []

    def build_mae() -> torch.nn.Module:
        wrapped.append(MAE())
        return wrapped[-1]

    names: dict[str, object] = {"MAE": build_mae, "MoCoV2": MoCo}
    exec(block("from mim_plugins.lightly import"), names)
    assert len(wrapped) == 3
    names["images"] = torch.rand(2, 3, 224, 224)
    line = next(
        line for line in block("DPPMasking(tau=0.5)(images").splitlines() if "mask =" in line
    )
    exec(line, names)
    assert names["mask"].ids_keep.shape == (2, 49)
