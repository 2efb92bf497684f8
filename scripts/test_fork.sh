#!/usr/bin/env bash
# The mmpretrain tests on the maintained fork (onedl-*), in a virtual environment of its own.
#
#   scripts/test_fork.sh [folder of the environment, default .venv-fork]
#
# The fork shares mmpretrain's import names, so it cannot stand beside it in one environment.
# Its requirements name other builds of mmcv, hence --no-deps and mmcv-lite.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-fork}
test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --quiet "$@"; }
pip install --upgrade pip 'setuptools>=77.0.3,<82'
pip install torch torchvision numba scikit-image scikit-learn matplotlib tqdm pytest pytest-xdist scipy
pip install --no-deps onedl-mmengine==0.10.12 onedl-mmpretrain==1.3.6 mmcv-lite==2.2.0
# what these three need at run time
pip install addict einops importlib-metadata mat4py modelindex opencv-python packaging pillow \
    pyyaml rich termcolor yapf ordered-set
pip install --no-deps --editable .
"$venv/bin/python" -m mim_plugins
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n 2 tests/mmpretrain tests/upstream/test_mmpretrain_mae.py
