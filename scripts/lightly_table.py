"""What ``wrap`` does with each LightningModule of lightly's repository, as a table.

    python scripts/lightly_table.py CHECKOUT > table.md

Every class of the checkout's ImageNet benchmarks and Lightning examples is built as it is there,
wrapped with DPP masks if it draws masks of patches, else with MixMask, and trained for one step
on random images (timm's ViTs with a depth of 1). The table shows what ran, or the message of the
error, and whether the stock class trains on the same images where the wrapped one does not.
Nothing of the checkout but imports, constants and definitions is executed, and nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import ast
import gc
import inspect
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from mim_plugins.lightly import wrap
from mim_plugins.lightly.draws import calls_mask_functions
from mim_plugins.masking import DPPMasking
from mim_plugins.mixing import MixMask

FOLDERS = (
    "benchmarks/imagenet/vitb16",
    "benchmarks/imagenet/resnet50",
    "examples/pytorch_lightning",
)
# Sizes of the views that a method is trained on, by the name of its class in lower case.
VIEWS = {
    "mae": [224],
    "simmim": [224],
    "capi": [256],
    "pixio": [256],
    "ibot": [224, 224, 96, 96],
    "dinov2": [224, 224, 96, 96],
    "msn": [224, 224, 96, 96],
    "pmsn": [224, 224, 96, 96],
    "fastsiam": [64, 64, 64, 64],
    "dino": [224, 224, 96, 96],
    "lejepa": [224, 224, 96, 96],
    "visreg": [224, 224, 224, 224, 96, 96],
    "swav": [64, 64, 32, 32],
}


def definitions(file: Path) -> ModuleType:
    """The module of a file without anything that runs: no data sets, models or trainers."""
    module = ModuleType(f"lightly_{file.parent.name}_{file.stem}")
    sys.modules[module.__name__] = module
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    for node in ast.parse(file.read_text()).body:
        is_constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and not any(
            isinstance(part, ast.Call) for part in ast.walk(node)
        )
        if isinstance(node, kinds) or is_constant:
            code = compile(ast.Module([node], []), str(file), "exec")
            try:
                exec(code, vars(module))
            except (ImportError, NameError) as error:  # of what only the rest of the file needs
                print(f"{file.name}: {error}", file=sys.stderr)
    for name in [name for name in vars(module) if name.startswith("vit_")]:
        setattr(module, name, partial(getattr(module, name), depth=1))
    return module


def methods(folder: Path) -> Iterator[tuple[Path, type[LightningModule]]]:
    for file in [folder] if folder.is_file() else sorted(folder.glob("*.py")):
        module = definitions(file)
        for value in list(vars(module).values()):  # training adds a name
            if (
                isinstance(value, type)
                and issubclass(value, LightningModule)
                and value.__module__ == module.__name__
                and "Classifier" not in value.__name__  # which evaluates others
            ):
                yield file, value


def build(method: type[LightningModule]) -> LightningModule:
    given = {"batch_size_per_device": 4, "num_classes": 10, "knn_k": 5, "knn_t": 0.1}
    known = inspect.signature(method).parameters
    return method(**{name: value for name, value in given.items() if name in known})


class OneStep(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = True


def _views(model: LightningModule, sizes: list[int]) -> list:
    """One sample: random views, with what else some methods take from the data."""
    views: list = [torch.rand(3, size, size) for size in sizes]
    if type(model).__name__ == "DetConS":  # segments
        return [(view, torch.randint(25, (1, *view.shape[1:]))) for view in views]
    if type(model).__name__ == "VICRegL":  # positions of the ResNet's cells, of 32 pixels
        return views + [torch.rand(size // 32, size // 32, 2) for size in sizes]
    return views


def train(model: LightningModule, sizes: list[int]) -> None:
    data = [(_views(model, sizes), index % 10, f"{index}.png") for index in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=100, limit_val_batches=0, accelerator="cpu", devices=1, logger=False,
            callbacks=[OneStep()], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        ).fit(model, DataLoader(data, 4))  # fmt: skip


def attempt(method: type[LightningModule], plugin: dict[str, Any], sizes: list[int]) -> str:
    """``yes`` if a wrapped module trains, else why not."""
    refused = _error(method, plugin, sizes)
    if not refused:
        return "yes"
    stock = _error(method, {}, sizes)
    return f"no, nor does stock: {stock}" if stock else f"no: {refused}"


def _error(method: type[LightningModule], plugin: dict[str, Any], sizes: list[int]) -> str:
    """What stops one step of a module, stock if there is no plugin; else nothing."""
    torch.manual_seed(0)
    names = vars(sys.modules[method.__module__])
    try:
        model = build(method)
        names["model"] = model  # which some of the examples read in place of self
        train(wrap(model, **plugin) if plugin else model, sizes)
    except Exception as error:
        return _line(error)
    finally:
        names.pop("model", None)
        gc.collect()
    return ""


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).replace("|", "\\|")
    return f"{type(error).__name__}: {text[:160]}{'…' if len(text) > 160 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of github.com/lightly-ai/lightly")
    parser.add_argument("--only", default="", help="part of a file's path")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print("| file | class | `masking=DPPMasking()` | `mixing=MixMask()` |\n|---|---|---|---|")
    for folder in FOLDERS:
        for file, method in methods(args.checkout / folder):
            path = str(file.relative_to(args.checkout))
            if args.only not in path:
                continue
            sizes = VIEWS.get(method.__name__.lower(), [64, 64])
            if calls_mask_functions(method):
                plugin, cells = {"masking": DPPMasking()}, ["", "not siamese"]
                cells[0] = attempt(method, plugin, sizes)
            elif "random_prefix_mask" in file.read_text():
                cells = ["no: its masks are prefixes of a sequence", "no: it compares no views"]
            else:
                cells = ["no: it draws no masks", attempt(method, {"mixing": MixMask()}, sizes)]
            print(f"| `{path}` | {method.__name__} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
