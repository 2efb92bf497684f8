"""Shared fixtures."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mim_plugins.apps.photos import write_photo_folder

from .two_processes import TwoProcesses
from .warm import quicken

torch.set_num_threads(1)  # with more, stock MixMIM differs from run to run


def pytest_collection_finish() -> None:
    quicken()  # all that the tests need is imported


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``{train,test}/<photograph>/*.png``, 15 classes, 8 and 4 crops of 64 x 64 each."""
    root = tmp_path_factory.mktemp("photos")
    return write_photo_folder(root, size=64, train_per_class=8, test_per_class=4)


@pytest.fixture(scope="session")
def two_processes() -> Iterator[TwoProcesses]:
    """Two gloo processes, started when first used."""
    processes = TwoProcesses()
    yield processes
    processes.stop()
