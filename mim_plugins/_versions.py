"""Too old a package is named when it is imported, not when it fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType


@cache
def check_versions(*modules: ModuleType, extra: str = "") -> None:
    """Compare the versions of imported packages with the lower bounds in ``setup.cfg``.

    Args:
        modules: The packages, under the names of their distributions but for ``-`` and ``_``;
            one that this package does not ask for, or without a version, is passed over.
        extra: What to install if one is too old.

    Raises:
        ImportError: If one is older than its bound.
    """
    try:
        bounds = {}
        for requirement in requires("mim_plugins") or ():
            if found := re.match(r"([\w-]+)\s*>=\s*([\d.]+)", requirement.replace("(", "")):
                bounds[found[1]] = found[2]
    except PackageNotFoundError:  # the source tree, not installed
        return
    for module in modules:
        name = module.__name__.replace("_", "-")
        version, bound = getattr(module, "__version__", ""), bounds.get(name, "")
        if version and bound and numbers(version) < numbers(bound):
            package = f"mim_plugins[{extra}]" if extra else "mim_plugins"
            raise ImportError(
                f"mim_plugins needs {name}>={bound}, found {version}: "
                f"pip install --upgrade '{package}'"
            )


@contextmanager
def importing(needs: str, extra: str = "analysis") -> Iterator[None]:
    """Where an import within fails: ImportError with what ``needs`` it, and what to install."""
    try:
        yield
    except (ImportError, AssertionError) as error:  # mmpretrain asserts that mmcv and mmengine fit
        raise ImportError(f"{needs} ({error}): pip install 'mim_plugins[{extra}]'") from error


def numbers(version: str) -> list[int]:
    numbers = [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]
    return numbers + [0] * (3 - len(numbers))  # 2.7 is 2.7.0
