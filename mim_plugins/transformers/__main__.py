"""Run a training script of transformers, unchanged, with masks and terms of this package.

Every model that the script hands to ``Trainer`` is wrapped by
:func:`mim_plugins.transformers.wrap` first; masks that the script draws itself, as
``run_mim.py`` does, are replaced.

    python -m mim_plugins.transformers --masking '{"type": "DPPMasking", "tau": 0.5}' \
        run_mae.py --dataset_name cifar10 --output_dir out
    torchrun --nproc_per_node 2 -m mim_plugins.transformers \
        --regularizers '[{"type": "UniformityLoss", "weight": 0.01}]' run_mae.py ...
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

from .. import masking as maskings
from .. import regularizers as terms
from .wrap import wrap


def _build(option: str, module: ModuleType, config: Any) -> Any:
    """``{"type": name, ...}`` as that class of ``module`` with the other entries as arguments."""
    name = str(config.get("type")) if isinstance(config, dict) else ""
    if name not in module.__all__ or not isinstance(getattr(module, name), type):
        raise ValueError(
            f"{option} must name its type, a class of {module.__name__}, got {config!r}"
        )
    return getattr(module, name)(**{key: value for key, value in config.items() if key != "type"})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mim_plugins.transformers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--masking", type=json.loads, help="JSON of a masking and its arguments")
    parser.add_argument(
        "--regularizers", type=json.loads, default=[], help="JSON list of terms and their arguments"
    )
    parser.add_argument("script", type=Path, help="e.g. run_mae.py or run_mim.py of transformers")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    options = parser.parse_args(argv)
    try:
        if not options.script.is_file():
            raise ValueError(f"script must be a file, got {options.script}")
        masking = options.masking and _build("--masking", maskings, options.masking)
        regularizers = [_build("--regularizers", terms, term) for term in options.regularizers]
        if masking is None and not regularizers:
            raise ValueError("--masking or --regularizers must be given")
    except (TypeError, ValueError) as error:
        parser.error(str(error))

    stock = transformers.Trainer.__init__

    @wraps(stock)  # the signature is looked at by subclasses
    def init(self: Any, model: Any = None, *args: Any, **kwargs: Any) -> None:
        wrap(model, masking=masking, regularizers=regularizers, replace_masks=True)
        stock(self, model, *args, **kwargs)

    transformers.Trainer.__init__ = init  # type: ignore[method-assign]
    sys.argv = [str(options.script), *options.arguments]
    sys.path.insert(0, str(options.script.parent.resolve()))
    runpy.run_path(str(options.script), run_name="__main__")


if __name__ == "__main__":
    main()
