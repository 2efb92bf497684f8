"""Which part of the package may import which; every import counts, those in functions too."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mim_plugins"
CORE = ("masking", "mixing", "regularizers", "analysis")
# The frameworks that a part is an adapter of, by the names of their distributions' modules.
FRAMEWORKS = {
    "mmpretrain": {"mmpretrain", "mmengine", "mmcv"},
    "lightly": {"lightly", "pytorch_lightning"},
    "transformers": {"transformers"},
}
ADAPTERS = tuple(name for name in FRAMEWORKS if (PACKAGE / name).exists())


def imports_of(path: Path, root: Path = PACKAGE) -> set[str]:
    """Modules that a file imports, absolute, each name of ``from a import b`` as ``a.b`` too."""
    package = [root.name, *path.relative_to(root).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def arrows(start: tuple[str, ...], forbidden: set[str]) -> list[str]:
    """Imports of ``forbidden`` modules, or modules in them, from the parts ``start``."""
    paths = [path for part in start for path in sorted((PACKAGE / part).rglob("*.py"))]
    assert paths
    return [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in paths
        for module in sorted(imports_of(path))
        if any(module == each or module.startswith(f"{each}.") for each in forbidden)
    ]


def test_no_arrow_from_the_core_to_adapters_apps_or_frameworks() -> None:
    forbidden = {f"mim_plugins.{name}" for name in (*FRAMEWORKS, "apps")}
    assert not arrows(CORE, forbidden.union(*FRAMEWORKS.values()))


def test_no_arrow_from_the_other_axes_to_analysis() -> None:
    assert not arrows(("masking", "mixing", "regularizers"), {"mim_plugins.analysis"})


def test_no_arrow_from_masking_to_another_axis() -> None:
    assert not arrows(("masking",), {"mim_plugins.mixing", "mim_plugins.regularizers"})


def test_no_arrow_from_an_adapter_to_an_app() -> None:
    assert not arrows(ADAPTERS, {"mim_plugins.apps"})


@pytest.mark.parametrize("name", ADAPTERS)
def test_no_arrow_from_an_adapter_to_another(name: str) -> None:
    others = set(ADAPTERS) - {name}
    forbidden = {f"mim_plugins.{other}" for other in others}
    for other in others:
        forbidden |= FRAMEWORKS[other]
    assert not arrows((name,), forbidden)


def test_arrows_are_seen(tmp_path: Path) -> None:
    root = tmp_path / "mim_plugins"
    path = root / "masking" / "deep" / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch\n"
        "from ... import analysis\n"
        "from ..base import Masking\n"
        "from . import near\n"
        "def later():\n"
        "    from ...lightly.wrap import wrap\n"
        "    import mmengine.hooks as hooks\n"
    )
    found = imports_of(path, root)
    assert found >= {
        "torch",
        "mim_plugins.analysis",
        "mim_plugins.masking.base.Masking",
        "mim_plugins.masking.deep.near",
        "mim_plugins.lightly.wrap",
        "mmengine.hooks",
    }
