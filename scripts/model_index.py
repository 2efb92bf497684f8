"""Write ``model-index.yml`` and the metafiles of the config folders, which openmim reads.

    python scripts/model_index.py            # after a config is added, renamed or removed

A config's name says its batch, epochs and data, as upstream's do. There are no weights: nothing
at the papers' scale has been trained.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs_mmpretrain"
DATA = {
    "in1k": "ImageNet-1k",
    "in100": "ImageNet-100",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny-ImageNet",
    "coco": "COCO",
    "ade20k": "ADE20K",
    "voc0712": "PASCAL VOC 2007+2012",
}


def configs(folder: Path) -> list[Path]:
    """What a user trains or tests with, not what configs inherit."""
    return sorted(p for p in folder.rglob("*.py") if "_base_" not in p.parts)


def metadata(name: str) -> dict[str, Any]:
    """What a config's name says."""
    found: dict[str, Any] = {}
    if match := re.search(r"_(\d+)xb(\d+)", name):
        found["Batch Size"] = int(match[1]) * int(match[2])
    if match := re.search(r"-(\d+)e_", name):
        found["Epochs"] = int(match[1])
    data = re.sub(r"-(\d+px|\d+x\d+)$", "", name.rsplit("_", 1)[-1])
    if data in DATA:
        found["Training Data"] = DATA[data]
    return found


def metafile(folder: Path) -> dict[str, Any]:
    """The collection of a folder and its configs."""
    readme = (folder / "README.md").read_text()
    title = re.search(r"^# (.+)$", readme, re.MULTILINE)
    assert title
    collection: dict[str, Any] = {"Name": title[1], "README": _path(folder / "README.md")}
    if paper := re.search(r"^> \[(.+)\]\((\S+)\)$", readme, re.MULTILINE):
        collection["Paper"] = {"Title": paper[1], "URL": paper[2]}
    models = [
        {
            "Name": path.stem,
            "In Collection": title[1],
            "Config": _path(path),
            "Metadata": metadata(path.stem),
            "Results": None,  # nothing at this scale has been trained
        }
        for path in configs(folder)
    ]
    return {"Collections": [collection], "Models": models}


def index() -> dict[Path, dict[str, Any]]:
    """What each file says."""
    files = {f / "metafile.yml": metafile(f) for f in sorted(CONFIGS.iterdir()) if configs(f)}
    return {ROOT / "model-index.yml": {"Import": [_path(path) for path in files]}, **files}


def _path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def main() -> None:
    for path, content in index().items():
        path.write_text(yaml.safe_dump(content, sort_keys=False, width=1000))


if __name__ == "__main__":
    main()
