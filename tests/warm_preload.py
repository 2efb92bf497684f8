"""Imported once by the process that those of :mod:`tests.warm` are forked from."""

from .warm import preload

preload()
