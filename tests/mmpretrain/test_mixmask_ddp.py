"""MixMask on two gloo processes: the queue, the shuffled keys and the gathered negatives."""

from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mim_plugins.mixmask import Mix, mix_views, mixture

from .siamese import BATCH, build, views

MIXMASK = {"mixmask": {"grid_size": 4, "ratio": 0.3, "permutation": "random"}}


def part(rank: int) -> list[torch.Tensor]:
    return [view[rank * BATCH : (rank + 1) * BATCH] for view in views(batch=2 * BATCH)]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for algorithm in ("MoCo", "SimCLR"):
        length = {"queue_len": 4 * BATCH} if algorithm == "MoCo" else {}
        for name, model in (
            ("stock", build(algorithm, plugin=False, **length)),
            ("ours", build(algorithm, **MIXMASK, **length)),
        ):
            model.eval()
            torch.manual_seed(7)
            losses = model.loss(part(rank), None)
            results[algorithm, name] = {k: v.item() for k, v in losses.items()}
            if algorithm == "MoCo":
                results["queue", name] = model.queue, model.queue_ptr.item()
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def test_the_queue_is_that_of_stock_on_both_ranks(results: list[dict]) -> None:
    for result in results:
        queue, pointer = result["queue", "ours"]
        assert pointer == result["queue", "stock"][1] == 2 * BATCH
        torch.testing.assert_close(queue, result["queue", "stock"][0])
        assert torch.equal(queue, results[0]["queue", "ours"][0])


@pytest.mark.parametrize("algorithm", ["MoCo", "SimCLR"])
def test_the_original_term_is_that_of_stock(results: list[dict], algorithm: str) -> None:
    for result in results:
        assert result[algorithm, "ours"]["loss_orig"] == pytest.approx(
            result[algorithm, "stock"]["loss"], rel=1e-6
        )


def test_simclr_takes_the_negatives_of_both_ranks(results: list[dict]) -> None:
    """The term of one process with the joined batch, mixed within its halves."""
    model = build("SimCLR", **MIXMASK).eval()
    mixes = []
    for rank in (0, 1):
        torch.manual_seed(7)
        mixes.append(mix_views(model.mixers[0], part(rank)))
    joined = [
        Mix(
            torch.cat((a.images, b.images)),
            a.lam,
            torch.cat((a.permutation, BATCH + b.permutation)),
            a.mask,
        )
        for a, b in zip(*mixes, strict=True)
    ]
    keys, mixed = model.encode([views(batch=2 * BATCH), [mix.images for mix in joined]])
    criterion = model.criterion()
    terms = [
        mixture(criterion, query, key, mix)
        for query, key, mix in zip(mixed, reversed(keys), joined, strict=True)
    ]
    expected = (sum(terms) / 2).item()
    for result in results:
        assert result["SimCLR", "ours"]["loss_mixmask"] == pytest.approx(expected, rel=1e-5)
