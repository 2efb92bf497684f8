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
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from . import __version__
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _import(name: str) -> ModuleType | str:
    """The module, or one line saying why it cannot be imported."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return importlib.import_module(name)
    except Exception as error:  # whatever breaks an adapter is to be shown, not raised
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n", 1)[0]


def _list(title: str, things: Iterable[tuple[str, object]]) -> None:
    print(f"\n{title}")
    for name, thing in things:
        print(f"  {name:<28} {_first_line(thing)}")


def _public(module: ModuleType) -> list[tuple[str, object]]:
    return [(name, getattr(module, name)) for name in module.__all__]


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    commands = "\n".join(f"  {name:<16} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m mim_plugins",
        usage=f"%(prog)s [-h] [--configs]\n       %(prog)s {{{','.join(COMMANDS)}}} [-h] ...",
        description=__doc__.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if arguments[:1] == ["--self-test"]:
        arguments = ["self-test", *arguments[1:]]
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
        found = [f"{name} {v}" for name in group if (v := _version(name)) is not None]
        if found:
            print("  " + ", ".join(found))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"  CUDA device: {gpu}")

    adapters = {name: _import(f"mim_plugins.{name}") for name in ("mmpretrain", "lightly")}
    print("\nFrameworks")
    for name, adapter in adapters.items():
        state = "usable" if isinstance(adapter, ModuleType) else f"not usable: {adapter}"
        print(f"  {name:<28} {state}")

    for name in CORE:
        module = _import(name)
        if isinstance(module, ModuleType):
            _list(name, _public(module))
        else:
            print(f"\n{name}: {module}")

    adapter = adapters["mmpretrain"]
    if isinstance(adapter, ModuleType):
        from mmpretrain import registry

        registered = [
            (f"{kind}: {name}", cls)
            for kind in (
                "MODELS",
                "TRANSFORMS",
                "TASK_UTILS",
                "HOOKS",
                "LOOPS",
                "METRICS",
                "BATCH_AUGMENTS",
            )
            for name, cls in getattr(registry, kind).module_dict.items()
            if cls.__module__.startswith("mim_plugins.")
        ]
        _list("Registered in mmpretrain", registered)
        print("\nRemedies for mmpretrain")
        for status in adapter.remedies.status():
            print(f"  {status.name:<16} {status.state:<12} {status.description}")
        print(f"\nConfigs        {config_folder()}")
        print(f"Stock tool     {mmpretrain_tool('train')}")
    adapter = adapters["lightly"]
    if isinstance(adapter, ModuleType):
        _list("mim_plugins.lightly", _public(adapter))
    return 0 if any(isinstance(adapter, ModuleType) for adapter in adapters.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
