"""Where the shipped mmpretrain configs and mmpretrain's own tools lie."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def config_folder() -> Path:
    """The folder ``configs_mmpretrain``: inside an installed package or in a source tree."""
    package = Path(__file__).parent
    installed = package / "configs_mmpretrain"
    return installed if installed.is_dir() else package.parent / "configs_mmpretrain"


def mmpretrain_tool(name: str) -> Path:
    """mmpretrain's own ``tools/<name>.py``, as its wheel ships it.

    Raises:
        ImportError: If mmpretrain is not installed.
    """
    spec = find_spec("mmpretrain")
    if spec is None or spec.origin is None:
        raise ImportError("mmpretrain is not installed: pip install 'mim_plugins[mmpretrain]'")
    return Path(spec.origin).parent / ".mim" / "tools" / f"{name}.py"
