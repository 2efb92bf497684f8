"""The test suite with the oldest supported versions, the newest ones, the fork, newer Pythons.

    python scripts/test_matrix.py                               # all columns, whole suite
    python scripts/test_matrix.py --only oldest -- tests/masking -q    # pytest's arguments

Every column gets a virtual environment of its own in ``--envs``, which later runs use again
while what is installed and ``setup.cfg`` stay the same. uv resolves the versions:

- ``oldest`` takes the lowest version that ``setup.cfg`` allows of all that it names, so that
  its lower bounds are what is tested;
- ``newest`` what an installation takes today;
- ``python3.13`` and ``python3.14`` the same on that Python, which uv fetches if it is missing;
- ``onedl`` mmpretrain's maintained fork. It shares mmpretrain's import names, so it cannot
  stand beside it; its requirements name other builds of mmcv, hence ``--no-deps``.

A column takes 6 GB of disk, uv's cache not counted, and minutes. The table goes to standard
output and to ``table.md`` in ``--envs``; columns that are not run again keep their results.
Exit code 1 if a test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import date
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
TOOLS = ("pytest>=8", "pytest-xdist", "hypothesis", "psutil", "tensorboard")
FORK = ("onedl-mmengine==0.10.12", "onedl-mmpretrain==1.3.6", "mmcv-lite==2.2.0")
# What the fork's three packages need at run time.
FORK_NEEDS = [
    "addict",
    "einops",
    "importlib-metadata",
    "mat4py",
    "modelindex",
    "opencv-python",
    "ordered-set",
    "packaging",
    "pillow",
    "pyyaml",
    "rich",
    "scipy",
    "setuptools>=77.0.3,<82",
    "termcolor",
    "torchvision",
    "yapf",
]


@dataclass(frozen=True)
class Column:
    """A column of the table: preferred Python versions, arguments of ``uv pip install``."""

    pythons: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...]


NEWEST = (("--editable", ".[all]", *TOOLS),)
COLUMNS = {
    "oldest": Column(
        ("3.10", "3.11", "3.12"),
        (("--resolution", "lowest-direct", "--editable", ".[all]"), TOOLS),
    ),
    "newest": Column(("3.12", "3.11", "3.10"), NEWEST),
    "python3.13": Column(("3.13",), NEWEST),
    "python3.14": Column(("3.14",), NEWEST),
    "onedl": Column(
        ("3.12", "3.11", "3.10"),
        (
            ("--editable", ".[lightly,analysis,fast]", *FORK_NEEDS, *TOOLS),
            ("--no-deps", *FORK),
        ),
    ),
}
PACKAGES = (
    ("torch",),
    ("torchvision",),
    ("lightly",),
    ("pytorch-lightning",),
    ("timm",),
    ("transformers",),
    ("mmengine", "onedl-mmengine"),
    ("mmpretrain", "onedl-mmpretrain"),
    ("mmcv-lite",),
    ("numpy",),
    ("numba",),
    ("matplotlib",),
    ("scikit-image",),
    ("setuptools",),
)
VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"Python": platform.python_version()}
for names in json.loads(sys.argv[1]):
    for name in names:
        try:
            found[names[0]] = version(name) + (f" ({name})" if name != names[0] else "")
        except PackageNotFoundError:
            pass
print(json.dumps(found))
"""


def find_uv(envs: Path) -> str:
    """uv on the path, else one installed into ``envs``."""
    found = shutil.which("uv")
    if found:
        return found
    own = envs / "uv" / "bin" / "uv"
    if not own.exists():
        subprocess.run([sys.executable, "-m", "venv", str(envs / "uv")], check=True)
        subprocess.run([str(own.parent / "python"), "-m", "pip", "-q", "install", "uv"], check=True)
    return str(own)


def find_python(versions: tuple[str, ...]) -> str:
    """The first of these Python versions that this machine has, else one for uv to fetch."""
    environ = dict(os.environ)
    if shutil.which("pyenv"):  # whose python3.x on the path run only where they are selected
        bare = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True)
        environ["PYENV_VERSION"] = ":".join(bare.stdout.split())
    for version in versions:
        command = [f"python{version}", "-c", "import sys; print(sys.executable)"]
        if shutil.which(command[0]):
            found = subprocess.run(command, capture_output=True, text=True, env=environ)
            if found.returncode == 0:
                return found.stdout.strip()
    return versions[0]


def environment(uv: str, name: str, envs: Path) -> Path:
    """Python of the column's environment, made anew if what it is made of has changed."""
    column, env = COLUMNS[name], envs / name
    python, stamp = env / "bin" / "python", env / "installed-for.json"
    recipe = json.dumps([column.installs, (REPO / "setup.cfg").read_text().split("[tool:")[0]])
    if stamp.exists() and stamp.read_text() == recipe:
        return python
    interpreter = find_python(column.pythons)
    subprocess.run([uv, "venv", "--clear", "--python", interpreter, str(env)], check=True)
    for arguments in column.installs:
        command = [uv, "pip", "install", "--python", str(python), *arguments]
        subprocess.run(command, cwd=REPO, check=True)
    stamp.write_text(recipe)
    return python


def run_tests(name: str, python: Path, arguments: list[str], report: Path) -> dict:
    """Run pytest; versions, counts and minutes."""
    versions = subprocess.run(
        [str(python), "-c", VERSIONS, json.dumps(PACKAGES)],
        check=True,
        capture_output=True,
        text=True,
    )
    report.unlink(missing_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "pytest", *arguments, f"--junitxml={report}"]
    start = time.monotonic()
    code = subprocess.run(command, cwd=REPO, env=environ).returncode
    minutes = (time.monotonic() - start) / 60
    if not report.exists():
        raise SystemExit(f"{name}: pytest stopped with exit code {code} before any test")
    suites = ET.parse(report).getroot().iter("testsuite")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for key in counts:
            counts[key] += int(suite.get(key, 0))
    failed = counts["failures"] + counts["errors"]
    return {
        "versions": json.loads(versions.stdout),
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "minutes": round(minutes, 1),
        "tests": " ".join(arguments),
        "date": date.today().isoformat(),
    }


def table(results: dict[str, dict]) -> str:
    """Markdown, a column for each result."""
    rows = [("Python", "Python"), *((names[0], names[0]) for names in PACKAGES)]
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for title, key in rows:
        cells = (result["versions"].get(key, "-") for result in results.values())
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for key in ("passed", "failed", "skipped", "minutes", "tests", "date"):
        cells = (str(result[key]) for result in results.values())
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument(
        "--envs", type=Path, default=REPO / ".matrix", help="folder of the environments (.matrix)"
    )
    parser.add_argument(
        "pytest", nargs="*", metavar="-- ...", help="of pytest; default: -n 2 --dist worksteal"
    )
    arguments = parser.parse_args()
    envs = arguments.envs.resolve()
    envs.mkdir(parents=True, exist_ok=True)
    pytest = arguments.pytest or ["-n", "2", "--dist", "worksteal"]
    uv = find_uv(envs)
    saved = envs / "results.json"
    results = json.loads(saved.read_text()) if saved.exists() else {}
    for name in arguments.only:
        print(f"== {name}", flush=True)
        python = environment(uv, name, envs)
        results[name] = run_tests(name, python, pytest, envs / f"{name}.xml")
        results = {name: results[name] for name in COLUMNS if name in results}
        saved.write_text(json.dumps(results, indent=1))
        (envs / "table.md").write_text(table(results) + "\n")
    print(table(results))
    return int(any(results[name]["failed"] for name in arguments.only))


if __name__ == "__main__":
    raise SystemExit(main())
