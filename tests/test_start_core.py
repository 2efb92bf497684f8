"""The recipes of docs/start/core.md, where what they are for is installed or checked out.

Set ``MAE_REPO`` to a checkout of facebookresearch/mae, which is no package.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mim_plugins.masking import DPPMasking

DOCUMENT = Path(__file__).parent.parent / "docs" / "start" / "core.md"
FIRST, *SECTIONS = re.split(r"^## ", DOCUMENT.read_text(), flags=re.M)
MAE_REPO = os.environ.get("MAE_REPO")


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.M)


def run(heading: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names that the first block and those of a section leave."""
    torch.manual_seed(0)
    names["__name__"] = "start_core"
    (section,) = [text for text in SECTIONS if text.startswith(heading + "\n")]
    for code in blocks(FIRST, "python") + blocks(section, "python"):
        exec(compile(code, f"{DOCUMENT.name}: {heading}", "exec"), names)
    return names


def test_every_recipe_has_a_test() -> None:
    headings = [section.partition("\n")[0] for section in SECTIONS]
    assert headings == ["timm", "facebookresearch/mae", "stable-pretraining"]


def test_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    names = run("timm", {})
    vit, images, mask = names["vit"].eval(), names["images"], names["mask"]
    latent = vit.forward_features(images)
    assert latent.shape == (4, 1 + 49, 192)
    # The same by hand: blocks are equivariant, so that attention must not have seen the others.
    tokens = vit.patch_embed(images) + vit.pos_embed[:, 1:]
    first = (vit.cls_token + vit.pos_embed[:, :1]).expand(4, -1, -1)
    visible = torch.stack([row[~removed] for row, removed in zip(tokens, mask.mask, strict=True)])
    expected = vit.norm(vit.blocks(torch.cat([first, visible], dim=1)))
    torch.testing.assert_close(latent[:, 0], expected[:, 0])
    torch.testing.assert_close(latent.sum(dim=1), expected.sum(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(MAE_REPO is None, reason="MAE_REPO is not set to a checkout of mae")
def test_mae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    shutil.copytree(str(MAE_REPO), tmp_path / "mae")
    (section,) = [text for text in SECTIONS if text.startswith("facebookresearch/mae")]
    for code in blocks(section, "bash"):
        subprocess.run(["bash", "-ec", code], cwd=tmp_path / "mae", check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "mae"))
    for name in ("main_pretrain", "models_mae", "engine_pretrain", "util"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    names = run("facebookresearch/mae", {})
    model = names["models_mae"].MaskedAutoencoderViT(
        img_size=64, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16,
        decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    images = torch.rand(4, 3, 64, 64)
    torch.manual_seed(1)
    loss, _, mask = model(images, mask_ratio=0.6)
    torch.manual_seed(1)
    assert torch.equal(mask.bool(), DPPMasking(tau=0.5)(images, mask_ratio=0.6, patch_size=8).mask)
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad.isfinite().all() for parameter in trained)
    built = names["models_mae"].mae_vit_base_patch16()  # by name, as main_pretrain does
    assert type(built) is names["DPPMAE"]


def test_stable_pretraining() -> None:
    pytest.importorskip("stable_pretraining", reason="stable-pretraining is not installed")
    names = run("stable-pretraining", {})
    model, images = names["model"], names["images"]
    torch.manual_seed(1)
    output = model.train()(images)
    torch.manual_seed(1)
    expected = DPPMasking(tau=0.5)(images, mask_ratio=0.75, patch_size=16).mask
    assert torch.equal(output.mask.bool(), expected)
    assert all(
        parameter.grad.isfinite().all() for parameter in model.encoder.vit.blocks.parameters()
    )
    assert output.num_visible == 49
    assert model.eval()(images).num_masked == 0
