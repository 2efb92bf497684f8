"""What is installed, what is mended and what can be used; and commands, see their ``--help``.

{commands}
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from . import __version__
from ._check import first_line
from ._configs import config_folder, mmpretrain_tool

PACKAGES = (
    ("torch", "torchvision", "numpy"),
    ("mmpretrain", "onedl-mmpretrain", "mmengine", "onedl-mmengine", "mmcv-lite", "mmcv"),
    ("onedl-mmcv", "setuptools"),
    ("lightly", "timm", "pytorch-lightning"),
    ("numba", "triton", "matplotlib", "networkx", "piq", "scikit-image", "scikit-learn"),
)
CORE = (
    "mim_plugins.masking",
    "mim_plugins.mixmask",
    "mim_plugins.regularizers",
    "mim_plugins.analysis",
)


COMMANDS = {
    "demo": "pre-train with random and DPP masks, probe both, look at the result",
    "report": "what did their masking make MAE and SimMIM checkpoints learn?",
    "show": "picture images, masks and reconstructions of a checkpoint",
    "variant-labels": "ImageNet-1K labels of ImageNet-V2, -R, -A, -Sketch and ObjectNet",
    "self-test": "run every plugin once on this machine's device",
}


def _import(name: str) -> ModuleType | None:
    """An adapter, if it can be imported; whether, and why not, is printed."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            module = importlib.import_module(f"mim_plugins.{name}")
    except Exception as error:  # whatever breaks an adapter is to be shown, not raised
        print(f"  {name:<28} not usable: {first_line(error)}")
        return None
    print(f"  {name:<28} usable")
    return module


def _list(title: str, things: Iterable[tuple[str, object]]) -> None:
    print(f"\n{title}")
    for name, thing in things:
        summary = (inspect.getdoc(thing) or "").split("\n", 1)[0]
        print(f"  {name:<28} {summary}")


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    commands = "\n".join(f"  {name:<16} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m mim_plugins",
        usage=f"%(prog)s [-h] [--configs]\n       %(prog)s {{{','.join(COMMANDS)}}} [-h] ...",
        description=__doc__.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0].replace("-", "_")
        try:
            command = importlib.import_module(f".apps.{name}", __package__)
        except ImportError as error:
            parser.error(f"{arguments[0]} needs what is not there ({error}): see the README")
        return command.main(arguments[1:]) or 0
    parser.add_argument(
        "--configs", action="store_true", help="print only the folder of mmpretrain configs"
    )
    if parser.parse_args(arguments).configs:
        print(config_folder())
        return 0

    import torch

    print(f"mim_plugins {__version__}, Python {sys.version.split()[0]}")
    for group in PACKAGES:
        found = []
        for name in group:
            with suppress(PackageNotFoundError):
                found.append(f"{name} {version(name)}")
        if found:
            print("  " + ", ".join(found))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"  CUDA device: {gpu}")

    print("\nFrameworks")
    mmpretrain, lightly = _import("mmpretrain"), _import("lightly")

    for module in (*map(importlib.import_module, CORE), lightly):
        if module is not None:
            _list(module.__name__, ((name, getattr(module, name)) for name in module.__all__))

    if mmpretrain is not None:
        from mmengine.registry import Registry
        from mmpretrain import registry

        registered = (
            (f"{kind}: {name}", cls)
            for kind, found in vars(registry).items()
            if isinstance(found, Registry)
            for name, cls in found.module_dict.items()
            if cls.__module__.startswith("mim_plugins.")
        )
        _list("Registered in mmpretrain", registered)
        print("\nRemedies for mmpretrain")
        for status in mmpretrain.remedies.status():
            print(f"  {status.name:<16} {status.state:<12} {status.description}")
        print(f"\nConfigs        {config_folder()}")
        print(f"Stock tool     {mmpretrain_tool('train')}")
    return 0 if mmpretrain or lightly else 1


if __name__ == "__main__":
    raise SystemExit(main())
