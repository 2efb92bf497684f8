"""The table of plugins: a row, and ``test_invariants.py`` covers a new one.

Rows are in ``mmpretrain_cases.py`` and ``lightly_cases.py``; those of a framework that is not
installed are left out.
"""

from __future__ import annotations

from importlib.util import find_spec

from .case import Case

CASES: list[Case] = []
if find_spec("mmpretrain"):
    from .mmpretrain_cases import CASES as MMPRETRAIN

    CASES += MMPRETRAIN
if find_spec("lightly"):
    from .lightly_cases import CASES as LIGHTLY

    CASES += LIGHTLY
