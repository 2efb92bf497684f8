"""Masking and mixing papers as plugins for stock mmpretrain and lightly pipelines.

Importing this package needs torch alone; ``mim_plugins.mmpretrain`` and
``mim_plugins.lightly`` are the adapters, each needing its own framework.
"""

__version__ = "0.2.0"
