"""The lightly examples, run as a user runs them, on a small image folder."""

from pathlib import Path

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

from .warm import run_script

EXAMPLES = Path(__file__).parents[1] / "examples_lightly"
VARIANTS = {
    "umae.py": [[], ["--paper"]],
    "siamese_mixmask.py": [["--algorithm", name] for name in ("moco", "byol", "simclr", "simsiam")],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (path.name, arguments)
        for path in sorted(EXAMPLES.glob("*.py"))
        for arguments in VARIANTS.get(path.name, [[]])
    ],
)
def test_example_runs(
    script: str, arguments: list[str], photo_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in sorted(path.name for path in (photo_folder / "train").iterdir())[:4]:
        (data / name).symlink_to(photo_folder / "train" / name)
    code, output = run_script(
        EXAMPLES / script,
        *("--data", data, "--epochs", "1", "--batch-size", "16", *arguments),
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert code == 0, output[-3000:]
    saved = output.strip().splitlines()[-1]
    assert (tmp_path / saved.split(": ", 1)[1]).is_file()
