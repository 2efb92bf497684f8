"""The examples of docs/extend.md: the blocks of a section run in turn, then they are used."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

DOCUMENT = Path(__file__).parent.parent / "docs" / "extend.md"
SECTIONS = {
    section.partition("\n")[0]: re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.M)
    for section in re.split(r"^## ", DOCUMENT.read_text(), flags=re.M)[1:]
}


def use_masking(names: dict[str, Any]) -> None:
    """In both frameworks the darkest quarter stays."""
    from mmpretrain.registry import MODELS, TRANSFORMS

    from .mmpretrain.models import ARCH

    mask, masking = names["mask"], names["BrightMasking"]
    assert mask.mask.view(2, 7, 2, 7, 2).sum(dim=(2, 4)).unique().tolist() == [0, 4]
    images = torch.rand(4, 3, 32, 32)

    def darkest(images: torch.Tensor, patch: int, number: int) -> torch.Tensor:
        batch, channels, side, _ = images.shape
        rows = side // patch
        patches = images.view(batch, channels, rows, patch, rows, patch)
        return (
            patches.mean(dim=(1, 3, 5)).flatten(1).topk(number, largest=False).indices.sort().values
        )

    module = names["module"]
    module.log = lambda *args, **options: None
    module.training_step(([images],), 0)
    assert torch.equal(module.seen[0][:, 1:].sort().values - 1, darkest(images, 4, 16))
    backbone = MODELS.build({**names["backbone"], "arch": ARCH, "img_size": 32, "patch_size": 4})
    assert isinstance(backbone.masking, masking)
    removed = backbone(images)[1]
    assert torch.equal(removed.bool(), module_mask(darkest(images, 4, 16), 64))
    image = (images.new_empty(192, 192, 3).uniform_() * 255).byte().numpy()
    found = torch.from_numpy(TRANSFORMS.build(names["transform"])({"img": image})["mask"])
    units = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    assert torch.equal(found[::8, ::8].bool().view(1, 36), module_mask(darkest(units, 32, 14), 36))


def module_mask(kept: torch.Tensor, num: int) -> torch.Tensor:
    """``(B, N)``, True = removed."""
    return torch.ones(len(kept), num, dtype=torch.bool).scatter(1, kept, False)


def use_term(names: dict[str, Any]) -> None:
    """The same numbers in both frameworks as of the formula on the features."""
    from .mmpretrain.models import build

    module, logged = names["module"], {}
    module.log = lambda name, value, **options: logged.setdefault(name, value)
    images = torch.rand(4, 3, 32, 32)
    module.training_step(([images],), 0)
    tokens = module.backbone.encode(images, idx_keep=module.seen[0])
    found = {"lightly": (logged["loss_shrink"], tokens)}
    model = build("MAEViT", names["model"])
    images = torch.rand(4, 3, 64, 64)
    torch.manual_seed(0)
    losses = model.loss(images, None)
    torch.manual_seed(0)
    found["mmpretrain"] = losses["loss_shrink"], model.backbone(images)[0]
    for loss, latent in found.values():
        expected = 0.1 * latent[:, 1:].mean(dim=1).norm(dim=1).square().mean()
        torch.testing.assert_close(loss, expected)
    spread = build("MAEViT", {"type": "RegularizedMAE", "regularizers": [names["Spread"](0.5)]})
    losses = spread.loss(images, None)
    torch.testing.assert_close(losses["loss_spread"], -0.5 * losses["spread_std"])


# What is done with the names that a section has defined, by its heading.
USES: dict[str, Callable[[dict[str, Any]], None]] = {
    "Your own masking in 10 lines": use_masking,
    "Your own term in 10 lines": use_term,
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_examples_run(heading: str) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from .lightly.modules import MAE

    names: dict[str, Any] = {"MAE": MAE, "__name__": "extend"}
    assert SECTIONS[heading]
    for code in SECTIONS[heading]:
        exec(compile(code, f"{DOCUMENT.name}: {heading}", "exec"), names)
    USES.get(heading, lambda names: None)(names)
