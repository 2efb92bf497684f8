"""The short name of :mod:`mim_plugins.mixing`."""

from .mixing import *  # noqa: F403
from .mixing import __all__ as __all__
