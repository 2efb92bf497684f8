"""The CUDA kernel: interpreted and compiled everywhere, run where there is a GPU."""

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mim_plugins.masking import (
    DPPMasking,
    RandomMasking,
    _numba,
    _triton,
    dpp,
    greedy_map,
    sample_kdpp,
)
from mim_plugins.masking.dpp import SMALLEST_GAIN, _greedy_map_torch

pytestmark = pytest.mark.skipif(not _triton.INSTALLED, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

INTERPRETED = """
import torch
from mim_plugins.masking import _triton, dpp
from mim_plugins.masking.dpp import _greedy_map_torch
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
for batch, num, dim, k, sets in [(2, 12, 3, 6, 1), (1, 20, 2, 20, 1), (2, 12, 3, 4, 3)]:
    x = torch.randn(batch, num, dim, generator=generator).double()
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2).float()
    noise = torch.rand(batch, num, generator=generator)
    for threshold, random_start in ((1e-12, False), (0.1, True), (1.0, True)):
        arguments = (L, k, threshold, random_start, noise, sets)
        assert torch.equal(_triton.greedy_map(*arguments), _greedy_map_torch(*arguments))
    if sets == 1:
        values, vectors = torch.linalg.eigh(L.double())
        arguments = (values.clamp(min=1e-10).log(), k, torch.rand(num, batch).double())
        spanned = dpp._sample_eigenvectors(*arguments)
        assert torch.equal(_triton.sample_eigenvectors(*arguments), spanned)
        basis = vectors.gather(2, spanned[:, None].expand(-1, num, -1))
        clocks = torch.empty(k, batch, num).double().exponential_(generator=generator)
        arguments = (basis @ basis.mT, k, clocks)
        chosen = dpp._sample_projection(*arguments)
        assert torch.equal(_triton.sample_projection(*arguments), chosen)
        assert all(len(set(row)) == k for row in chosen.tolist())
        basis[:, :, k // 2 :] = 0  # eigenvalues of zero
        arguments = (basis @ basis.mT, k, clocks)
        chosen = dpp._sample_projection(*arguments)
        assert torch.equal(_triton.sample_projection(*arguments), chosen)
        assert all(len(set(row)) == k for row in chosen.tolist())
"""


def test_interpreted_kernels_agree_with_the_torch_path() -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    if not hasattr(InterpreterBuilder, "get_int1_ty"):
        pytest.skip("this Triton's interpreter knows no booleans")
    subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )


def compiled(kernel: Any, types: str, settings: dict[str, Any], capability: int) -> bytes:
    """The machine code for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget

    names = [name for name in kernel.arg_names if name not in settings]
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=dict(zip(names, types.split(), strict=True))
        | dict.fromkeys(settings, "constexpr"),
        constexprs=settings,
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("num", "k", "sets"), [(49, 12, 1), (196, 49, 4), (3136, 784, 1)])
def test_greedy_kernel_compiles_without_a_gpu(num: int, k: int, sets: int, capability: int) -> None:
    settings = _triton.settings(num, k, RANDOM_START=True, SETS=sets)
    assert compiled(_triton._greedy, "*fp32 *fp32 *fp64 *fp64 *i64 fp32 i32", settings, capability)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("num", "k"), [(196, 49), (784, 196)])
def test_exact_kernels_compile_without_a_gpu(num: int, k: int, capability: int) -> None:
    settings = _triton.eigenvector_settings(num, k)
    kernel = _triton._eigenvectors
    assert compiled(kernel, "*fp64 *fp64 *fp64 *i64 i32", settings, capability)
    settings = _triton.settings(num, k, SMALLEST=_triton.SMALLEST_PROBABILITY)
    kernel = _triton._projection
    assert compiled(kernel, "*fp64 *fp64 *fp64 *i64 i32", settings, capability)


def test_one_warning_and_the_torch_path_where_the_kernel_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton refuses CPU tensors, as it fails on a GPU without a compiler: at the launch."""
    monkeypatch.setattr(_triton, "_failed", False)
    monkeypatch.setattr(_triton, "usable_for", lambda L: not _triton._failed)
    monkeypatch.setattr(_numba, "INSTALLED", False)
    _triton._warn.cache_clear()
    x = torch.randn(2, 16, 3)
    L, noise = torch.exp(-torch.cdist(x, x)), torch.rand(2, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            chosen = greedy_map(L, 4, noise=noise)
            assert torch.equal(chosen, _greedy_map_torch(L, 4, SMALLEST_GAIN, True, noise))
            assert sample_kdpp(L, 4).shape == (2, 4)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "C compiler (gcc)" in str(caught[0].message)


def test_too_many_patches_are_left_to_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_failed", False)
    with FakeTensorMode():
        assert _triton.usable_for(torch.empty(1, 8192, 8192, device="cuda"))
        with pytest.warns(RuntimeWarning, match="8193 masking units are more than the 8192"):
            assert not _triton.usable_for(torch.empty(1, 8193, 8193, device="cuda"))


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


def test_slow_eigendecompositions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", lambda L: next(iter(())))
    with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for version, num in (("2.12.0", 64), ("2.11.0+cu126", 32), ("2.11.0+cu126", 64)):
            monkeypatch.setattr(torch, "__version__", version)
            L = torch.empty(2, num, num, device="cuda")
            with pytest.raises(StopIteration):  # there is nothing to sample from
                sample_kdpp(L, 4)
    assert [str(w.message)[:18] for w in caught] == ["torch 2.11.0+cu126"]


@needs_gpu
def test_gpu_kernels_sample_as_the_torch_path() -> None:
    x = torch.randn(16, 196, 8).double()
    values, vectors = torch.linalg.eigh(torch.exp(-0.5 * torch.cdist(x, x) ** 2))
    numbers = (values.clamp(min=1e-10).log(), 49, torch.rand(196, 16).double())
    spanned = dpp._sample_eigenvectors(*numbers)
    on_gpu = [n.cuda() if isinstance(n, torch.Tensor) else n for n in numbers]
    assert torch.equal(_triton.sample_eigenvectors(*on_gpu).cpu(), spanned)
    basis = vectors.gather(2, spanned[:, None].expand(-1, 196, -1))
    K, clocks = basis @ basis.mT, torch.empty(49, 16, 196).double().exponential_()
    chosen = dpp._sample_projection(K, 49, clocks)
    assert torch.equal(_triton.sample_projection(K.cuda(), 49, clocks.cuda()).cpu(), chosen)


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
def test_gpu_kernel_takes_turns_as_the_torch_path() -> None:
    x = torch.randn(16, 196, 8, device="cuda").double()
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2).float()
    arguments = (49, 0.1, True, torch.rand(16, 196, device="cuda"), 4)
    expected = _greedy_map_torch(L, *arguments)
    assert torch.equal(_triton.greedy_map(L, *arguments), expected)
    assert torch.equal(expected.view(4, 16, 49).transpose(0, 1).flatten(1).sort(dim=1).values,
                       torch.arange(196, device="cuda").expand(16, -1))  # fmt: skip


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_images_on_another_device_than_the_current_one() -> None:
    masks = [
        DPPMasking(tau=0.0)(torch.ones(1, 3, 224, 224, device=d), noise=torch.rand(1, 196).to(d))
        for d in ("cuda:0", "cuda:1")
    ]
    assert [mask.mask.sum().item() for mask in masks] == [147, 147]


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
