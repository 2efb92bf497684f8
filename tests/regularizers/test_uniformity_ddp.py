"""Two gloo processes against one process with the joined batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mim_plugins.regularizers import UniformityLoss, uniformity

from ..two_processes import TwoProcesses

# Images of the first rank; 14 in all. Unequal batches are summed correctly too, but DDP
# then weighs ranks, not images, in all other losses.
SPLITS = (7, 9)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 8))


def batch() -> torch.Tensor:
    return torch.randn(14, 5, generator=torch.Generator().manual_seed(1))


def worker(rank: int) -> dict:
    results = {}
    for split in SPLITS:
        for gather in (True, False):
            ddp = nn.parallel.DistributedDataParallel(model())
            part = batch()[:split] if rank == 0 else batch()[split:]
            loss = UniformityLoss(weight=0.5, gather_distributed=gather)(ddp(part))
            loss.backward()
            gradients = [p.grad.clone() for p in ddp.module.parameters()]
            results[split, gather] = loss.detach(), gradients
    results["official"] = official()
    # Different upstream gradients: the gradient is that of the sum of both ranks' losses.
    features = batch()[rank * 7 : rank * 7 + 7].double().requires_grad_()
    ((rank + 1) * uniformity(features, gather_distributed=True)).backward()
    return results | {"features": features.grad}


def official() -> tuple[dict, dict]:
    """Ours, and the official gathering as it is described: own rows only have a gradient."""
    rank = dist.get_rank()
    rows, found = slice(7 * rank, 7 * rank + 7), {}
    for name in ("ours", "theirs"):
        ddp = nn.parallel.DistributedDataParallel(model())
        features = ddp(batch()[rows])
        if name == "ours":
            loss = UniformityLoss(weight=0.5, official_gather=True)(features)
        else:
            gathered = [torch.empty_like(features) for _ in range(2)]
            dist.all_gather(gathered, features.detach())
            gathered[rank] = features
            unit = nn.functional.normalize(torch.cat(gathered), dim=1)
            loss = 0.5 * (unit @ unit.T).square().mean()
        loss.backward()
        found[name] = [loss.detach(), *(p.grad.clone() for p in ddp.module.parameters())]
    return found["ours"], found["theirs"]


@pytest.fixture(scope="module")
def results(two_processes: TwoProcesses) -> list[dict]:
    return two_processes.run(worker)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("rank", [0, 1])
def test_loss_and_gradients_equal_one_process(results: list[dict], split: int, rank: int) -> None:
    single = model()
    expected = UniformityLoss(weight=0.5)(single(batch()))
    expected.backward()
    loss, gradients = results[rank][split, True]
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-6)
    assert max(p.grad.abs().max() for p in single.parameters()) > 1e-3  # else 1e-6 means little
    for gradient, parameter in zip(gradients, single.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-6)
    local, local_gradients = results[rank][split, False]
    assert (local - expected).abs() > 1e-4  # the comparison can fail
    differences = [
        (gradient - parameter.grad).abs().max()
        for gradient, parameter in zip(local_gradients, single.parameters(), strict=True)
    ]
    assert max(differences) > 1e-4


def test_official_gather_is_the_official_gathering(results: list[dict]) -> None:
    """The same loss, half the gradient of the exact one on two processes."""
    for rank in results:
        ours, theirs = rank["official"]
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        loss, gradients = rank[7, True]
        torch.testing.assert_close(ours[0], loss)
        for found, exact in zip(ours[1:], gradients, strict=True):
            torch.testing.assert_close(found, exact / 2, rtol=1e-5, atol=1e-7)


def test_gradient_is_that_of_the_sum_of_all_losses(results: list[dict]) -> None:
    features = batch().double().requires_grad_()
    (3 * uniformity(features)).backward()  # 1 of rank 0 and 2 of rank 1
    found = torch.cat([rank["features"] for rank in results])
    torch.testing.assert_close(found, features.grad, rtol=1e-9, atol=1e-12)
