"""The lightly examples, run as a user runs them, on a small image folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

EXAMPLES = Path(__file__).parents[1] / "examples_lightly"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(script: str, photo_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in sorted(path.name for path in (photo_folder / "train").iterdir())[:4]:
        (data / name).symlink_to(photo_folder / "train" / name)
    result = subprocess.run(
        [
            *(sys.executable, EXAMPLES / script, "--data", data),
            *("--epochs", "1", "--batch-size", "16"),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    saved = result.stdout.strip().splitlines()[-1]
    assert (tmp_path / saved.split(": ", 1)[1]).is_file()
