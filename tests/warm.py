"""Scripts run as ``python script arguments`` in processes in which the frameworks are imported.

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
import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

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
        config.FormatCode = lambda text, **style: (text, False)
        if not hasattr(utils.load, "cache_clear"):
            utils.load = functools.cache(utils.load)
    gc.collect()
    gc.freeze()


def run_script(
    script: str | Path,
    *arguments: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Exit code and output of ``python script arguments``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.warm_preload"])
    with TemporaryDirectory() as folder:
        output = Path(folder, "output")
        argv = [str(script), *map(str, arguments)]
        child = context.Process(
            target=_main, args=(argv, str(output), str(cwd or os.getcwd()), dict(env or {}))
        )
        child.start()
        child.join(TIMEOUT)
        if child.is_alive():
            child.kill()
            child.join()
        code = child.exitcode
        assert code is not None
        return code, output.read_text(errors="replace") if output.exists() else ""


def _main(argv: list[str], output: str, cwd: str, env: dict[str, str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(cwd)
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # the system's, for data loaders
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).resolve().parent))
    code = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
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
