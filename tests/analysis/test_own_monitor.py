"""The example of docs/extend.md, run and then used in both frameworks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightly", reason="lightly is not installed")
pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mim_plugins.analysis import MONITORS

from ..lightly.modules import MAE
from ..mmpretrain.analysis.test_any_images import run

DOCUMENT = Path(__file__).parents[2] / "docs" / "extend.md"


def test_own_monitor_in_both_frameworks(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    section = DOCUMENT.read_text().split("## Your own monitor in 10 lines")[1].split("\n## ")[0]
    names: dict[str, Any] = {"__name__": "my_monitors"}
    for code in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.M):
        exec(compile(code, DOCUMENT.name, "exec"), names)
    try:
        features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
        cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
        expected = cosines[~torch.eye(7, dtype=torch.bool)].mean().item()
        assert names["mean_cosine"](features) == pytest.approx(expected, rel=1e-5)

        runner = run(tmp_path / "mmpretrain", names["custom_hooks"])
        logged = runner.message_hub.get_scalar("analysis/mean_cosine").data[0]
        assert len(logged) == 2

        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False,
            callbacks=names["callbacks"], enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        images = torch.rand(8, 3, 32, 32)
        model = MAE()
        trainer.fit(model, DataLoader([([image], 0) for image in images], batch_size=4))
        with torch.no_grad():
            found = names["mean_cosine"](model.eval().backbone(images))
        assert trainer.callback_metrics["analysis/mean_cosine"].item() == pytest.approx(found)
        lines = (tmp_path / "feature_monitor.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["mean_cosine"] == pytest.approx(found, rel=1e-5)
    finally:
        MONITORS.pop("mean_cosine", None)
