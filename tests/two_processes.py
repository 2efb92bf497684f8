"""Two gloo processes for all tests of a session: starting them costs more than most tests."""

from __future__ import annotations

import io
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from .warm import context

TIMEOUT_S = 180


class TwoProcesses:
    """Runs functions as rank 0 and 1 of a process group; started by the first :meth:`run`."""

    def __init__(self) -> None:
        self.processes: list[ForkServerProcess] = []
        self.connections: list[Connection] = []
        self.folder: TemporaryDirectory | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(rank, *args)`` of both ranks; the function is found by its name.

        Raises:
            RuntimeError: If it raises, with its traceback, or does not end in time. The
                processes are then started anew by the next call.
        """
        if not self.processes:
            self._start()
        for connection in self.connections:
            connection.send((function, args))
        results = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(TIMEOUT_S):
                self.stop()
                raise RuntimeError(f"rank {rank} gave no answer in {TIMEOUT_S} s")
            try:
                buffer = io.BytesIO(connection.recv_bytes())
            except EOFError:
                self.stop()
                raise RuntimeError(f"rank {rank} died") from None
            done, result = torch.load(buffer, weights_only=False)
            if not done:
                self.stop()  # the other one may wait for this one for ever
                raise RuntimeError(f"rank {rank}:\n{result}")
            results.append(result)
        return results

    def _start(self) -> None:
        self.folder = TemporaryDirectory()
        for rank in (0, 1):
            ours, theirs = multiprocessing.Pipe()
            process = context().Process(
                target=_serve, args=(rank, self.folder.name, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def stop(self) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.terminate()
            process.join()
        if self.folder is not None:
            self.folder.cleanup()
        self.__init__()


def _serve(rank: int, folder: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    # What torchrun sets: Lightning then takes itself for one of processes started by others.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            break
        try:
            result = (True, function(rank, *args))
        except Exception:
            result = (False, traceback.format_exc())
        buffer = io.BytesIO()
        torch.save(result, buffer)
        connection.send_bytes(buffer.getvalue())
