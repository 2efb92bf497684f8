"""All that needs a GPU, in phases of at most eight minutes that resume.

    python benchmarks/gpu.py                          # what is missing, then tables and plot
    python benchmarks/gpu.py --only kernels --again   # this phase anew
    python benchmarks/gpu.py --cifar10 DIR --cifar100 DIR    # also 200 epochs on CIFAR
    python benchmarks/gpu.py --tiny --out /tmp/gpu    # the same at tiny size, also on the CPU

Every phase is a process of its own and leaves ``<out>/<phase>.json``; one that is cut off leaves
nothing and starts anew. A phase of CIFAR is a slice of ``cifar.py``, which goes on from its last
checkpoint: call again until the table is complete. ``gpu.md`` and ``gpu.png`` are written from
what is there, each table with the GPU and the torch that it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import machine, photo_batch

from mim_plugins.apps import self_test
from mim_plugins.apps.self_test import STEPS, Size, make_step, time_in_turn

HERE = Path(__file__).resolve().parent
LIMIT = 480.0  # seconds of a phase
TESTS = [
    "tests/masking/test_triton.py", "tests/masking/test_dpp.py",
    "tests/robustness/test_fake_cuda.py",
]  # fmt: skip
LARGE = Size(
    image=224, patch=16, width=768, depth=12, heads=12, decoder_width=512, decoder_depth=8,
    resnet=50, resnet_width=64, queue=65536, hidden=2048, features=128, batch=256,
)  # fmt: skip
# Ratios to stock that the plugins are meant to stay below; the others are reported.
GOALS = {
    "DPP greedy": 1.01,
    "DPP exact": 1.5,
    "U-MAE": 1.01,
    # MoCo's step is a query and a key pass, 3 + 1 forwards; a mixed query pass adds 3.
    "MixMask": 1.05 * 7 / 4,
}
EXPERIMENTS = {"dppmask": "cifar10", "umae": "cifar10", "mi_mae": "cifar10", "mixmask": "cifar100"}

Rows = list[dict[str, Any]]


def run_tests(tiny: bool) -> Rows:
    """Tests of what runs on a GPU; those that need one are skipped without."""
    command = [sys.executable, "-m", "pytest", "-q", *(TESTS[:1] if tiny else TESTS)]
    command += ["-k", "warning"] if tiny else []
    run = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    last = (run.stdout.strip() or run.stderr.strip() or "no output").splitlines()[-1]
    return [{"check": "pytest", "result": "passed" if run.returncode == 0 else "FAILED", "": last}]


def run_kernels(tiny: bool) -> Rows:
    """The kernels against their references, on every device."""
    return [
        {"device": r.device, "check": r.check, "result": r.result, "": r.detail}
        for device in self_test.devices()
        for r in self_test.check_kernels(device)
    ]


def row(step: str, ms: str, ratio: str = "", goal: str = "", memory: str = "") -> dict[str, Any]:
    return {
        "step": step,
        "ms": ms,
        "ratio to stock": ratio,
        "goal": goal,
        "peak memory to stock": memory,
    }


def run_steps(framework: str, pipeline: str, tiny: bool) -> Rows:
    """Time and peak memory per step of every plugin, in turn with stock."""
    size = Size() if tiny else LARGE
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    images = photo_batch(2 * size.batch, size.image).to(device)
    views = list(((images - images.mean()) / images.std()).chunk(2))
    plugins = STEPS[framework][pipeline]
    steps, memory, rows = {}, {}, []
    for name, build in {**plugins, "stock again": plugins["stock"]}.items():
        before = torch.cuda.memory_allocated() if gpu else 0
        torch.manual_seed(0)
        try:
            step = make_step(framework, build(size), views, amp=gpu)
            step()  # compiles what is to be compiled
            if gpu:
                torch.cuda.reset_peak_memory_stats()
                step()
                memory[name] = torch.cuda.max_memory_allocated() - before
            steps[name] = step
        except torch.OutOfMemoryError:
            rows.append(row(name, "out of memory"))
            torch.cuda.empty_cache()
    seconds = time_in_turn(steps, 1 if tiny else 15, device)
    for name, value in seconds.items():
        ratio, goal = value / seconds["stock"], GOALS.get(name)
        if (framework, pipeline) == ("lightly", "SimSiam"):  # both views are queries
            goal = None
        met = "" if goal is None else f"{goal:.3f}: {'met' if ratio <= goal else 'MISSED'}"
        share = f"{memory[name] / memory['stock']:.2f}" if gpu else "not measured"
        rows.append(row(name, f"{value * 1e3:.1f}", f"{ratio:.3f}", met, share))
    return rows


PHASES: dict[str, Callable[[bool], Rows]] = {"tests": run_tests, "kernels": run_kernels}
for _framework, _pipelines in STEPS.items():
    for _pipeline in _pipelines:
        PHASES[f"steps-{_framework}-{_pipeline}".lower()] = partial(
            run_steps, _framework, _pipeline
        )


def work(name: str, out: Path, tiny: bool) -> None:
    """What a phase's process does; its result appears in one piece."""
    start = time.monotonic()
    result = {
        "rows": PHASES[name](tiny),
        "machine": machine(),
        "size": "tiny models" if tiny else f"{LARGE}, bfloat16 on a GPU",
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - start),
    }
    part = out / f"{name}.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, out / f"{name}.json")


def bounded(command: list[str]) -> int:
    """Exit code of a command and its children, all stopped after ``LIMIT`` seconds."""
    with subprocess.Popen(command, cwd=HERE, start_new_session=True) as process:
        try:
            return process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return -signal.SIGKILL


def cifar_command(experiment: str, data: Path, out: Path, tiny: bool) -> list[str]:
    command = [sys.executable, "cifar.py", experiment, "--data", str(data)]
    command += ["--out", str(out / experiment), "--resume"]
    size = ["--epochs", "200", "--images", "50000"]
    if tiny:
        size = ["--epochs", "2", "--images", "32", "--batch-size", "16", "--seeds", "0"]
    return command + size + ["--checkpoints", "2" if tiny else "20"]


def write(out: Path) -> None:
    """``gpu.md`` and ``gpu.png`` from the phases that are there."""
    found = {n: json.loads(p.read_text()) for n in PHASES if (p := out / f"{n}.json").exists()}
    lines = ["# Measured by `python benchmarks/gpu.py`"]
    for name, result in found.items():
        lines += ["", f"## {name}", "", f"{result['machine']}; {result['size']}; "]
        lines[-1] += f"{result['date']}, {result['seconds']} s."
        head = list(result["rows"][0])
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(map(str, row.values()))} |" for row in result["rows"]]
    for experiment in EXPERIMENTS:
        if (path := out / experiment / "results.json").exists():
            from cifar import read_results, table

            lines += ["", f"## CIFAR, {experiment}", "", table(read_results(path))]
    if missing := [name for name in PHASES if name not in found]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    (out / "gpu.md").write_text("\n".join(lines) + "\n")
    if steps := {n: r["rows"] for n, r in found.items() if n.startswith("steps")}:
        plot(steps, out / "gpu.png")


def plot(steps: dict[str, Rows], path: Path) -> None:
    """Ratios of step times to stock, one bar per plugin; a line at 1."""
    from matplotlib.figure import Figure

    bars = {
        f"{name.removeprefix('steps-')}: {row['step']}": float(row["ratio to stock"])
        for name, rows in steps.items()
        for row in rows
        if row["step"] != "stock" and row["ratio to stock"]
    }
    figure = Figure((7, 1 + 0.3 * len(bars)), layout="constrained")
    axis = figure.subplots()
    axis.barh(list(bars), list(bars.values()))
    axis.axvline(1.0, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlabel("step time, ratio to stock")
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--again", action="store_true", help="also phases that are there")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a test")
    parser.add_argument("--cifar10", type=Path, help="folder, see cifar.py")
    parser.add_argument("--cifar100", type=Path, help="folder, see cifar.py")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)  # in its process
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.phase:
        work(args.phase, args.out, args.tiny)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: this measures the CPU", flush=True)
    failed = []
    for name in args.only:
        if args.again or not (args.out / f"{name}.json").exists():
            print(f"{name} ...", flush=True)
            command = [sys.executable, __file__, "--phase", name, "--out", str(args.out)]
            if bounded(command + ["--tiny"] * args.tiny):
                failed.append(name)
            write(args.out)
    for experiment, data in EXPERIMENTS.items():
        if folder := getattr(args, data):
            print(f"CIFAR, {experiment} ...", flush=True)
            if bounded(cifar_command(experiment, folder.resolve(), args.out, args.tiny)):
                failed.append(f"{experiment} (call again to go on)")
    write(args.out)
    print((args.out / "gpu.md").read_text())
    if failed:
        print(f"not finished: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
