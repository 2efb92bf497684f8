"""Scripts run as by ``python script arguments`` in processes in which the frameworks are imported.

A process starts for every script, forked from one that has imported torch and the frameworks
(ten seconds each time otherwise), but nothing of mim_plugins: a config's or script's own import
of it is what a user's would be.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FRAMEWORKS = ("torch", "mmengine.runner", "mmpretrain", "lightly", "pytorch_lightning")
TIMEOUT = 900  # seconds


def preload() -> None:
    """Import what is there of the frameworks; called when this module is preloaded."""
    import warnings

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FRAMEWORKS:
            try:
                importlib.import_module(name)
            except Exception:  # not installed, or unfit: the script will say so
                continue
    quicken()


def quicken() -> None:
    """Spare what takes most of a short run: the same contents, printed and looked up cheaper.

    mmengine asks compilers and drivers for their versions in every run, prints configs in yapf's
    style several times and reads upstream's model zoo for every ``mmpretrain::`` base; Python
    looks through all that the frameworks are made of whenever it collects garbage.
    """
    if "mmengine.runner.runner" in sys.modules:
        from mmengine.config import config, utils
        from mmengine.runner import runner

        runner.collect_env = dict
        config.FormatCode = lambda text, **style: (
            re.sub(r"^(\w+)=", r"\1 = ", text, flags=re.MULTILINE),
            True,
        )
        if not hasattr(utils.load, "cache_clear"):
            utils.load = functools.cache(utils.load)
    gc.collect()
    gc.freeze()


def context() -> ForkServerContext:
    """Processes started by it have the frameworks imported, and nothing of mim_plugins."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([f"{__package__}.warm_preload"])
    return server


def run_script(
    *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Exit code, negative for a signal, and output of ``python arguments``.

    Args:
        *arguments: A script, ``-m`` and a module or ``-c`` and code, and what they are given.
        cwd: Where to run it.
        env: Changes of the environment.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder, "output")
        child = start_script(*arguments, output=output, cwd=cwd, env=env)
        child.join(TIMEOUT)
        if child.is_alive():
            child.kill()
            child.join()
        code = child.exitcode
        assert code is not None
        return code, output.read_text(errors="replace") if output.exists() else ""


def start_script(
    *arguments: str | Path,
    output: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """As :func:`run_script`, without waiting; what it prints goes to the file ``output``."""
    argv = [str(each) for each in arguments]
    child = context().Process(
        target=_main, args=(argv, str(output), str(cwd or os.getcwd()), dict(env or {}))
    )
    child.start()
    return child


class Fork:
    """``subprocess.Popen([python, *arguments], env=...)`` in a process started by this module."""

    def __init__(self, command: list[str], env: dict[str, str], **pipes: Any) -> None:
        ours, theirs = os.pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=_main, args=(command[1:], f"/dev/fd/{theirs}", os.getcwd(), env)
        )
        self.process.start()
        os.close(theirs)
        self.stdout = os.fdopen(ours, errors="replace")

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self.stdout.close()

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.returncode

    def terminate(self) -> None:
        self.process.terminate()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


def _main(argv: list[str], output: str, cwd: str, env: dict[str, str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(cwd)
    os.environ.update(env)
    # A shell that starts the tests in the background has them ignore it, and what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the system's, for data loaders
    multiprocessing.process._parent_process = None  # a script's first process has none
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    code = 0
    try:
        _run(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(argv: list[str]) -> None:
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        sys.path.insert(0, "")
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))
        runpy.run_path(argv[0], run_name="__main__")
