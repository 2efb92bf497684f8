"""What openmim reads: ``model-index.yml``, the metafiles, and where they lie."""

import subprocess
import sys
from pathlib import Path

import pytest

from mim_plugins._configs import config_folder

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (mmengine brings it)")

ROOT = Path(__file__).parents[1]


def files() -> dict[str, dict]:
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    return {path: yaml.safe_load((ROOT / path).read_text()) for path in index["Import"]}


def test_every_file_named_is_there_and_every_config_is_named() -> None:
    named = []
    for path, content in files().items():
        (collection,) = content["Collections"]
        assert (ROOT / collection["README"]).parent == (ROOT / path).parent
        for model in content["Models"]:
            assert model["In Collection"] == collection["Name"]
            assert (ROOT / model["Config"]).is_relative_to((ROOT / path).parent)
            assert model["Name"] == Path(model["Config"]).stem
            named.append(model["Config"])
    shipped = [p for p in config_folder().rglob("*.py") if "_base_" not in p.parts]
    assert sorted(named) == sorted(p.relative_to(ROOT).as_posix() for p in shipped)
    # `mim train mim_plugins NAME` finds a config by its name alone.
    assert len({Path(path).name for path in named}) == len(named)


def test_what_the_names_say() -> None:
    models = {m["Name"]: m["Metadata"] for content in files().values() for m in content["Models"]}
    assert models["umae_vit-base-p16_8xb128-amp-coslr-200e_in1k"] == {
        "Batch Size": 1024,
        "Epochs": 200,
        "Training Data": "ImageNet-1k",
    }
    assert models["umae_vit-tiny-p4_1xb4096-amp-coslr-2000e_cifar10-32px"] == {
        "Batch Size": 4096,
        "Epochs": 2000,
        "Training Data": "CIFAR-10",
    }


def test_the_index_is_up_to_date() -> None:
    """Else run ``python scripts/model_index.py``."""
    script = ROOT / "scripts" / "model_index.py"
    code = (
        f"import runpy, yaml; index = runpy.run_path({str(script)!r})['index']();"
        "assert all(yaml.safe_load(p.read_text()) == c for p, c in index.items())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_has_what_mim_looks_for_in_it() -> None:
    inside = ROOT / "mim_plugins"
    assert (inside / "model-index.yml").read_text() == (ROOT / "model-index.yml").read_text()
    for name in ("train", "test"):
        assert (inside / ".mim" / "tools" / f"{name}.py").is_file()


def test_openmim_s_own_reader_takes_it() -> None:
    modelindex = pytest.importorskip("modelindex", reason="model-index is not installed")
    index = modelindex.load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    assert len(index.models) == sum(len(content["Models"]) for content in files().values())
