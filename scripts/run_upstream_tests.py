"""Upstream's own unit tests, unmodified: as they are, then with our classes in upstream's place.

    python scripts/run_upstream_tests.py --mmpretrain CHECKOUT --lightly CHECKOUT

CHECKOUT is a checkout of the upstream repository, of which ``tests/`` is needed. The tests run
against the installed upstream package, or with ``--own-package`` against the checkout's. Our
classes stand in at their neutral setting, where they must do what stock does, and the masks also
at their default; ``upstream_substitutes.py`` says which and how. Needs the extra dev.

Printed is a table, then every test that did not pass and why. The exit status is 1 if a test that
passes with stock fails with ours and ``CANNOT_PASS`` does not say why, or a substitute is not used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from upstream_substitutes import CANNOT_PASS, ROWS, Row

Outcomes = dict[str, list[str]]  # test id: outcome, reason


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for upstream in ("mmpretrain", "lightly"):
        parser.add_argument(f"--{upstream}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--own-package", action="store_true", help="test the checkout's package")
    parser.add_argument("--only", default="", help="rows whose file contains this")
    args = parser.parse_args()
    rows = [row for row in ROWS if getattr(args, row.upstream) and args.only in row.file]
    if not rows:
        parser.error("nothing to run: give --mmpretrain CHECKOUT or --lightly CHECKOUT")

    table, notes, unexplained = [], [], 0
    versions: dict[str, str] = {}
    for row in rows:
        checkout = getattr(args, row.upstream).resolve()
        stock = run(row, checkout, "", args.own_package)
        versions[row.upstream] = f"{row.upstream} {stock['version']} in {stock['location']}"
        table.append(line(row, "stock", stock["outcomes"]))
        print(table[-1], file=sys.stderr, flush=True)
        notes += explain(row, "stock", stock["outcomes"])
        if row.reason:
            notes.append(f"{row.file}: {row.reason}")
        for name in row.substitutes:
            ours = run(row, checkout, name, args.own_package)
            table.append(line(row, name, ours["outcomes"]))
            print(table[-1], ours["used"], file=sys.stderr, flush=True)
            new = {
                test: outcome
                for test, outcome in ours["outcomes"].items()
                if stock["outcomes"].get(test) != outcome and outcome[0] != "passed"
            }
            missing = stock["outcomes"].keys() - ours["outcomes"].keys()
            new |= {test: ["failed", "not run"] for test in missing}
            for test, (_, reason) in new.items():
                why = next((w for part, w in CANNOT_PASS.items() if test.endswith(part)), None)
                unexplained += why is None
                notes.append(f"{name}: {test}: {reason}\n    {why or 'UNEXPLAINED'}")
            if not ours["used"]:
                unexplained += 1
                notes.append(f"{name}: {row.file}: no substitute was used")

    print(*versions.values(), "", sep="\n")
    print("| upstream's tests | with | passed | failed | skipped |\n|---|---|---|---|---|")
    print(*table, "", *notes, sep="\n")
    return int(unexplained > 0)


def run(row: Row, checkout: Path, substitute: str, own_package: bool) -> dict:
    """What became of the row's tests: ``outcomes``, ``used``, ``version``, ``location``."""
    paths = [str(Path(__file__).parent), *([str(checkout)] if own_package else [])]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "outcomes.json"
        command = [
            *(sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "upstream_substitutes", "--upstream", row.upstream),
            *("--outcomes", str(report), "--substitute", substitute),
            *("--rootdir", str(checkout), str(checkout / row.file), "-k", row.select),
        ]
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not report.exists():
            raise RuntimeError(f"pytest did not run {row.file}:\n{result.stdout[-3000:]}")
        return json.loads(report.read_text())


def line(row: Row, name: str, outcomes: Outcomes) -> str:
    count = Counter(outcome for outcome, _ in outcomes.values())
    numbers = " | ".join(str(count[outcome]) for outcome in ("passed", "failed", "skipped"))
    return f"| {row.upstream} `{row.file}` | {name} | {numbers} |"


def explain(row: Row, name: str, outcomes: Outcomes) -> list[str]:
    """Tests that failed or were skipped, counted by reason."""
    reasons = Counter((o, reason) for o, reason in outcomes.values() if o != "passed")
    return [f"{name}: {row.file}: {n} {o}: {reason}" for (o, reason), n in reasons.items()]


if __name__ == "__main__":
    sys.exit(main())
