"""Two gloo processes against one process with the joined batch."""

import pytest
import torch
from torch import nn

from mim_plugins.masking import ComplementaryMasking
from mim_plugins.regularizers import MutualInformationLoss, Step

from ..two_processes import TwoProcesses

M, D = 4, 8
CASES = [
    {"token": "mean", "input_weight": 0.1, "output_weight": 0.2},
    {"token": "each", "input_weight": 0.1, "projection_dim": None},
]
NAMES = ["mean", "each"]


class Model(nn.Module):
    """Visible pixels to tokens, and the terms of the tokens."""

    def __init__(self, gather: bool, **arguments: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(48, 16), nn.GELU(), nn.Linear(16, D))
        self.terms = MutualInformationLoss(D, hidden_dim=16, gather_distributed=gather, **arguments)

    def forward(self, images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> dict:
        batch = len(images)
        patches = nn.functional.unfold(images, 4, stride=4).mT.repeat(M, 1, 1)
        visible = patches.gather(1, ids.flatten(0, 1)[:, :, None].expand(-1, -1, 48))
        tokens = self.encoder(visible)
        mask = mask.reshape(M * batch, -1)
        step = Step(tokens, images=images, mask=mask, num_masks=M, num_prefix_tokens=0)
        terms = self.terms(step)
        return {**terms, "sum": sum(v for k, v in terms.items() if k.startswith("loss"))}


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(12, 3, 16, 16, generator=generator) + torch.rand(
        12, 3, 1, 1, generator=generator
    )
    mask = ComplementaryMasking(M, patch_size=4)(images, generator=generator)
    return images, mask.ids_keep.view(M, 12, -1), mask.mask.view(M, 12, -1)


def likely(model: Model) -> None:
    """Make q's estimate positive, else its gradient is zero and comparing it says nothing."""
    with torch.no_grad():
        images, ids, mask = batch()
    model.terms.gather_distributed, gather = False, model.terms.gather_distributed
    optimizer = torch.optim.Adam(model.terms.variational.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        model(images, ids, mask)["loss_variational"].backward()
        optimizer.step()
    model.zero_grad()
    model.terms.gather_distributed = gather


def run(model: nn.Module, rows: slice) -> tuple[dict, list]:
    images, ids, mask = batch()
    terms = model(images[rows], ids[:, rows], mask[:, rows])
    terms["sum"].backward()
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    gradients = [p.grad.clone() for p in plain.parameters()]
    return {k: v.detach() for k, v in terms.items()}, gradients


def worker(rank: int) -> dict:
    results = {}
    for name, case in zip(NAMES, CASES, strict=True):
        for gather in (True, False):
            model = Model(gather, **case)
            likely(model)
            ddp = nn.parallel.DistributedDataParallel(model)
            results[name, gather] = run(ddp, slice(6 * rank, 6 * rank + 6))
    return results


@pytest.fixture(scope="module")
def results(two_processes: TwoProcesses) -> list[dict]:
    return two_processes.run(worker)


@pytest.mark.parametrize(("name", "case"), list(zip(NAMES, CASES, strict=True)), ids=NAMES)
def test_terms_and_gradients_equal_one_process(results: list[dict], name: str, case: dict) -> None:
    single = Model(True, **case)
    likely(single)
    terms, gradients = run(single, slice(0, 12))
    assert terms["input"] > 0.1
    for key, value in terms.items():
        ranks = torch.stack([rank[name, True][0][key] for rank in results])
        torch.testing.assert_close(ranks.mean(), value, rtol=1e-5, atol=1e-6)
    assert max(g.abs().max() for g in gradients) > 1e-3  # else 1e-6 means little
    local_differs = []
    for rank in results:
        for found, expected in zip(rank[name, True][1], gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        for found, expected in zip(rank[name, False][1], gradients, strict=True):
            local_differs.append((found - expected).abs().max())
    assert max(local_differs) > 1e-4  # the comparison can fail
    # Each rank's InfoNCE is of its own queries, the upper bound is the global one.
    values = [rank[name, True][0]["input"] for rank in results]
    assert torch.equal(*values)
    assert results[0][name, True][0]["cross"] != results[1][name, True][0]["cross"]
