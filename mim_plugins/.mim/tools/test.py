"""mmpretrain's own ``tools/test.py``, where ``mim test mim_plugins`` looks for it."""

import runpy

from mim_plugins._configs import mmpretrain_tool

runpy.run_path(str(mmpretrain_tool("test")), run_name="__main__")
