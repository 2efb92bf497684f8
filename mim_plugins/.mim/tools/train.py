"""mmpretrain's own ``tools/train.py``, where ``mim train mim_plugins`` looks for it."""

import runpy

from mim_plugins._configs import mmpretrain_tool

runpy.run_path(str(mmpretrain_tool("train")), run_name="__main__")
