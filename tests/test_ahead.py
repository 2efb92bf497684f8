"""The blocks of docs/dppmask.md: masks made by data-loader workers are those that train."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

TEXT = (Path(__file__).parents[1] / "docs" / "dppmask.md").read_text()
SECTION = TEXT.split("## Slow masks, made ahead")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.M)


class Images(Dataset):
    def __init__(self, images: list, transform: object) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> object:
        return self.transform(self.images[index])


def test_mmpretrain(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from mmcv.transforms import Compose
    from mmengine.dataset import default_collate, worker_init_fn
    from mmengine.registry import init_default_scope

    from mim_plugins.apps.photos import PHOTOS, photo_crops

    from .mmpretrain.models import build

    init_default_scope("mmpretrain")
    names: dict = {}
    exec(BLOCKS[0], names)
    rng = np.random.default_rng(0)
    paths = []
    for name in list(PHOTOS)[:4]:
        paths.append(str(tmp_path / f"{name}.png"))
        next(iter(photo_crops(name, 1, 64, True, rng))).save(paths[-1])
    steps = names["pipeline"]
    steps[1]["scale"] = steps[3]["input_size"] = 64
    steps[3].update(mask_patch_size=8, model_patch_size=8)
    pipeline = Compose(steps)
    data = Images(paths, lambda path: pipeline({"img_path": path}))
    loader = DataLoader(
        data,
        4,
        num_workers=2,
        collate_fn=default_collate,
        worker_init_fn=partial(worker_init_fn, num_workers=2, rank=0, seed=0),
        multiprocessing_context="fork",
    )
    batch = next(iter(loader))
    made = torch.stack([sample.mask for sample in batch["data_samples"]]).flatten(1)
    assert made.sum(dim=1).tolist() == [48] * 4
    assert len(made.unique(dim=0)) == 4
    backbone = {**names["model"].pop("backbone")}
    model, seen = build(backbone["type"], names["model"]), []
    model.head.loss = lambda prediction, images, mask: seen.append(mask) or prediction.mean()
    model.loss(batch["inputs"].float(), batch["data_samples"])
    assert torch.equal(seen[0], made.float())


def test_lightly() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    from .lightly.modules import MAE

    names: dict = {"MAE": MAE, "MAETransform": lambda: lambda image: [image]}
    exec(BLOCKS[1].replace("patch_size=16", "patch_size=4"), names)
    images = list(torch.rand(4, 3, 32, 32))
    data = Images(images, lambda image: (names["transform"](image), 0, "name"))
    loader = DataLoader(data, 2, num_workers=2, multiprocessing_context="fork")
    module = names["module"]
    module.log = lambda *args, **options: None
    for batch in loader:
        module.training_step(batch, 0)
        made = batch[0][-1]
        assert len(made) == 2
        expected = torch.cat([torch.zeros(2, 1, dtype=torch.long), made.ids_keep + 1], dim=1)
        assert torch.equal(module.seen[-1].sort().values, expected.sort().values)
    first, second = (names["mask_of"](batch).mask for batch in loader)
    assert first.sum() == 2 * 48
    assert not torch.equal(first, second)
