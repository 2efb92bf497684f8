#!/bin/bash
# An environment in which the detection and segmentation configs run on a CPU:
#
#   scripts/detection_env.sh ENV [PYTHON]
#   ENV/bin/python -m pytest tests/test_configs.py
#
# MMDetection 3.3 and MMSegmentation 1.2 want an mmcv before 2.2 with compiled operators, of which
# there are wheels for old versions of torch only: mmcv 2.1.0 is compiled here from its source on
# PyPI, unchanged. It takes g++ and 8 GB of disk; MAX_JOBS sets how many files are compiled at once.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
"${2:-python3}" -m venv "$1"
env=$(cd "$1" && pwd)
pip() { "$env/bin/python" -m pip "$@"; }

# torch 2.7 is the oldest that mim_plugins takes. setuptools 82 has no pkg_resources any more.
pip install 'torch==2.7.1' 'torchvision==0.22.1' 'setuptools>=77.0.3,<82' wheel ninja psutil

# torch's headers take most of the time of each of the 77 files: they are compiled once, with the
# flags of the build. Were these to differ, g++ would read the headers as text, only slower.
headers=$env/headers
mkdir -p "$headers"
echo '#include <torch/types.h>' >"$headers/torch_once.h"
common='-DNDEBUG -fwrapv -fPIC -O1 -g0'
flags=($common -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H '-DPYBIND11_COMPILER_TYPE="_gcc"'
  '-DPYBIND11_STDLIB="_libstdcpp"' '-DPYBIND11_BUILD_ABI="_cxxabi1016"'
  -DTORCH_EXTENSION_NAME=_ext -D_GLIBCXX_USE_CXX11_ABI=1)
for folder in $("$env/bin/python" -c 'import sysconfig
from torch.utils.cpp_extension import include_paths
print(*include_paths(), sysconfig.get_path("include"))'); do flags+=("-I$folder"); done
[ -e "$headers/torch_once.h.gch" ] ||
  g++ "${flags[@]}" -x c++-header "$headers/torch_once.h" -o "$headers/torch_once.h.gch"

MMCV_WITH_OPS=1 FORCE_CUDA=0 CXX=g++ CFLAGS="$common -include $headers/torch_once.h" \
  pip install --no-build-isolation --no-binary mmcv mmcv==2.1.0
pip install 'mmdet>=3.3,<3.4' 'mmsegmentation>=1.2,<1.3' ftfy regex 'mmpretrain>=1.2.0' \
  'mmengine>=0.10.7' pytest
pip install --no-build-isolation -e "$root[analysis,fast]"
"$env/bin/python" -c 'from mmcv.ops import nms, roi_align; import mmdet, mmseg, mim_plugins.mmpretrain'
