"""The CUDA kernel: interpreted and compiled everywhere, run where there is a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from mim_plugins.masking import DPPMasking, RandomMasking, _triton, sample_kdpp
from mim_plugins.masking.dpp import SMALLEST_GAIN, _greedy_map_torch

pytestmark = pytest.mark.skipif(not _triton.INSTALLED, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

INTERPRETED = """
import torch
from mim_plugins.masking import _triton
from mim_plugins.masking.dpp import _greedy_map_torch
generator = torch.Generator().manual_seed(0)
for batch, num, dim, k in [(3, 12, 3, 6), (2, 49, 5, 12), (2, 20, 2, 20)]:
    x = torch.randn(batch, num, dim, generator=generator).double()
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2).float()
    noise = torch.rand(batch, num, generator=generator)
    for threshold in (1e-12, 0.1, 1.0):
        for random_start in (True, False):
            arguments = (L, k, threshold, random_start, noise)
            assert torch.equal(_triton.greedy_map(*arguments), _greedy_map_torch(*arguments))
"""


def test_interpreted_kernel_agrees_with_the_torch_path() -> None:
    subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )


@pytest.mark.parametrize(("num", "k"), [(49, 12), (196, 49), (784, 196), (3136, 784)])
def test_kernel_compiles_without_a_gpu(num: int, k: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    block = triton.next_power_of_2(num)
    source = triton.compiler.ASTSource(
        fn=_triton._greedy,
        signature={"L": "*fp32", "noise": "*fp32", "c": "*fp64", "chosen": "*i64"}
        | {"threshold": "fp32"}
        | dict.fromkeys(["NUM", "K", "RANDOM_START", "BLOCK", "ROWS"], "constexpr"),
        constexprs={"NUM": num, "K": k, "RANDOM_START": True}
        | {"BLOCK": block, "ROWS": max(1, min(16, 8192 // block))},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert compiled.asm["cubin"]


@needs_gpu
@pytest.mark.parametrize(("num", "k"), [(49, 12), (196, 49), (784, 196)])
def test_gpu_kernel_agrees_with_the_torch_path(num: int, k: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(16, num, 8, device="cuda", generator=generator).double()
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2).float()
    noise = torch.rand(16, num, device="cuda", generator=generator)
    for threshold in (SMALLEST_GAIN, 0.1, 1.0):
        for random_start in (True, False):
            arguments = (L, k, threshold, random_start, noise)
            expected = _greedy_map_torch(
                *(a.cpu() if a is L or a is noise else a for a in arguments)
            )
            assert torch.equal(_triton.greedy_map(*arguments).cpu(), expected)


@needs_gpu
def test_masks_on_the_gpu_are_deterministic_exact_in_number_and_without_synchronisation() -> None:
    x = torch.rand(8, 3, 224, 224, device="cuda")
    for masking in (DPPMasking(tau=0.0), DPPMasking(features="pixels"), DPPMasking(method="exact")):
        masking(x)  # compiles
        masks = []
        for _ in range(2):
            generator = torch.Generator("cuda").manual_seed(1)
            # The eigendecomposition of the exact method checks its result on the host.
            mode = "error" if masking.method == "greedy" else "default"
            torch.cuda.set_sync_debug_mode(mode)
            mask = masking(x, generator=generator)
            torch.cuda.set_sync_debug_mode("default")
            masks.append(mask.ids_shuffle)
        assert torch.equal(*masks)
        assert (mask.mask.sum(dim=1) == 147).all()


@needs_gpu
def test_gpu_distribution() -> None:
    tau_one, random = (
        masking(
            torch.rand(64, 3, 32, 32, device="cuda"),
            generator=torch.Generator("cuda").manual_seed(0),
        )
        for masking in (DPPMasking(patch_size=4, tau=1.0), RandomMasking(patch_size=4))
    )
    assert torch.equal(tau_one.ids_shuffle, random.ids_shuffle)
    L = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]], device="cuda")
    draws = sample_kdpp(L.expand(20000, -1, -1), 2, torch.Generator("cuda").manual_seed(0))
    together = ((draws == 0) | (draws == 1)).all(dim=1).float().mean().item()
    assert together == pytest.approx(0.19 / 2.19, abs=0.01)  # det 0.19 against 1 and 1
