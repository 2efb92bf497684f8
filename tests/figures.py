"""Figures that outlive what drew them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure


@contextmanager
def none_left() -> Iterator[None]:
    """Fails if figures are left: cycles of megabytes, which Python alone leaves for long."""
    gc.collect()
    before = _figures()
    gc.disable()
    try:
        yield
        assert _figures() - before <= 1  # mmengine's visualizer keeps one of its own
    finally:
        gc.enable()


def _figures() -> int:
    return sum(isinstance(each, Figure) for each in gc.get_objects())
