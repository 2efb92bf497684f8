"""Run the benchmarks of speed and load, and write what they print into benchmarks/README.md.

    python benchmarks/run_all.py                    # all, about an hour on two quiet cores
    python benchmarks/run_all.py --only umae soak   # these anew, the others stay as they are

Every script's output is kept in ``benchmarks/results/<name>.json`` with its command, date,
duration and machine; README.md is put together from these, so that a broken-off run goes on
with ``--missing``. Benchmarks of learning (``cifar.py``, ``hierarchical_sweep.py``) need data
or hours; their tables are in docs/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE / "README.md"

COMMANDS: dict[str, list[str]] = {
    "dpp_masking": ["dpp_masking.py"],
    "umae": ["umae.py"],
    "mixmask": ["mixmask.py"],
    "mi_mae": ["mi_mae.py", "--batch", "2", "--repeats", "3"],
    "instruments": ["instruments.py", "--repeats", "3"],
    "soak": ["soak.py"],
}
PACKAGES = ("torchvision", "mmpretrain", "mmengine", "lightly", "timm", "numpy", "numba")


def versions() -> str:
    """Names and versions of the packages that matter beside torch, see ``machine``."""
    found = [f"Python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def run(name: str) -> dict:
    """Run one script, its output shown as it comes."""
    command = [sys.executable, *COMMANDS[name]]
    start = time.monotonic()
    with subprocess.Popen(
        command, cwd=HERE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(line)
    return {
        "command": "python benchmarks/" + " ".join(COMMANDS[name]),
        "output": tables("".join(lines)),
        "code": process.returncode,
        "seconds": round(time.monotonic() - start),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }


def section(name: str, result: dict) -> str:
    """One script's part of README.md: what it measures, how it was run, what it printed."""
    source = (HERE / COMMANDS[name][0]).read_text()
    first = source.split('"""')[1].strip().splitlines()[0]
    note = "" if result["code"] == 0 else f" Exit code {result['code']}."
    return (
        f"## {name}\n\n{first}\n\n`{result['command']}`, {result['date']}, "
        f"{result['seconds']} s.{note}\n{result['machine']}; {result['versions']}.\n\n"
        f"{result['output']}\n"
    )


def tables(output: str) -> str:
    """The Markdown tables of an output, each with the line above it, without logs; else all."""
    blocks: list[str] = []
    before, inside = "", False
    for line in output.splitlines():
        if line.startswith("|"):
            if not inside:
                title = [] if not before or "mmengine" in before else [before, ""]
                blocks += ["", *title] if blocks else title
            blocks.append(line)
        inside = line.startswith("|")
        before = "" if inside else line.strip() or before
    return "\n".join(blocks) or f"```text\n{output.strip()}\n```"


def write() -> None:
    """Put README.md together from all results."""
    found = [name for name in COMMANDS if (RESULTS / f"{name}.json").exists()]
    sections = [section(name, json.loads((RESULTS / f"{name}.json").read_text())) for name in found]
    missing = [name for name in COMMANDS if name not in found]
    head = (
        "# Benchmarks\n\nWritten by `python benchmarks/run_all.py`; every table says how and "
        "where it was measured. Benchmarks of learning are in `docs/`.\n"
    )
    if missing:
        head += f"\nNot run yet: {', '.join(missing)}.\n"
    README.write_text("\n".join([head, *sections]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--missing", action="store_true", help="only those without a result")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    failed = []
    names = [n for n in args.only if not (args.missing and (RESULTS / f"{n}.json").exists())]
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}: {' '.join(COMMANDS[name])}", flush=True)
        result = run(name)
        if result["code"]:
            failed.append(name)
            if "|" not in result["output"]:  # a crash does not replace an earlier result
                continue
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        write()
    write()
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
