"""Two gloo processes against one process with the joined batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mim_plugins.regularizers import UniformityLoss, uniformity

# Images of the first rank; 14 in all. Unequal batches are summed correctly too, but DDP
# then weighs ranks, not images, in all other losses.
SPLITS = (7, 9)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 8))


def batch() -> torch.Tensor:
    return torch.randn(14, 5, generator=torch.Generator().manual_seed(1))


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for split in SPLITS:
        for gather in (True, False):
            ddp = nn.parallel.DistributedDataParallel(model())
            part = batch()[:split] if rank == 0 else batch()[split:]
            loss = UniformityLoss(weight=0.5, gather_distributed=gather)(ddp(part))
            loss.backward()
            gradients = [p.grad.clone() for p in ddp.module.parameters()]
            results[split, gather] = loss.detach(), gradients
    torch.save(results, f"{folder}/rank{rank}.pt")
    # Different upstream gradients: the gradient is that of the sum of both ranks' losses.
    features = batch()[rank * 7 : rank * 7 + 7].double().requires_grad_()
    ((rank + 1) * uniformity(features, gather_distributed=True)).backward()
    torch.save(features.grad, f"{folder}/features{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("rank", [0, 1])
def test_loss_and_gradients_equal_one_process(folder: Path, split: int, rank: int) -> None:
    single = model()
    expected = UniformityLoss(weight=0.5)(single(batch()))
    expected.backward()
    results = torch.load(folder / f"rank{rank}.pt")
    loss, gradients = results[split, True]
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-6)
    assert max(p.grad.abs().max() for p in single.parameters()) > 1e-3  # else 1e-6 means little
    for gradient, parameter in zip(gradients, single.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-6)
    local, local_gradients = results[split, False]
    assert (local - expected).abs() > 1e-4  # the comparison can fail
    differences = [
        (gradient - parameter.grad).abs().max()
        for gradient, parameter in zip(local_gradients, single.parameters(), strict=True)
    ]
    assert max(differences) > 1e-4


def test_gradient_is_that_of_the_sum_of_all_losses(folder: Path) -> None:
    features = batch().double().requires_grad_()
    (3 * uniformity(features)).backward()  # 1 of rank 0 and 2 of rank 1
    found = torch.cat([torch.load(folder / f"features{rank}.pt") for rank in (0, 1)])
    torch.testing.assert_close(found, features.grad, rtol=1e-9, atol=1e-12)
