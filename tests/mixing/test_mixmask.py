"""Mixed images against Eqs. 1-3 pixel by pixel, the loss against explicit pairs (Eqs. 4-6)."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_plugins.mixing import (
    EraseMask,
    Mix,
    Mixer,
    MixMask,
    MixMaskLoss,
    UnMix,
    default_grid_size,
    mixture,
)
from mim_plugins.mixing.mixmask import combine

EVERY = [
    MixMask(),
    MixMask(permutation="random", mask="random", ratio=(0.0, 1.0)),
    UnMix(prob_global=1.0),
    UnMix(prob_global=0.0),
    EraseMask(),
    EraseMask("noise", second="reversed"),
]
every_mixer = pytest.mark.parametrize("mixer", EVERY, ids=repr)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 6, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=seeded(), dtype=torch.float64)


# -- masks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["block", "random", "grid"])
@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.5, 0.75, 0.99])
def test_exact_count_of_whole_cells(mask: str, size: int, ratio: float) -> None:
    mix = MixMask(mask, size, ratio)(images(2))
    side = 32 // size
    cells = mix.mask.double().view(size, side, size, side).mean(dim=(1, 3))
    assert set(cells.unique().tolist()) == {0.0, 1.0}  # never empty, never full
    own = min(max(round(ratio * size**2), 1), size**2 - 1)
    assert cells.sum() == own
    assert mix.lam == own / size**2
    assert isinstance(mix.lam, float)


@pytest.mark.parametrize(("height", "width", "size"), [(224, 224, 48), (32, 20, 3), (7, 5, 5)])
def test_lam_counts_pixels_of_uneven_cells(height: int, width: int, size: int) -> None:
    values = set()
    for seed in range(20):
        mix = MixMask("random", size)(images(2, height, width), seeded(seed))
        assert mix.mask.shape == (height, width)
        assert mix.lam == mix.mask.double().mean().item()
        # Every pixel of a cell is the same, and all cells are there.
        rows, cols = (torch.arange(side) * size // side for side in (height, width))
        cells = torch.stack([mix.mask[rows == r][:, cols == c].double().mean()
                             for r in range(size) for c in range(size)])  # fmt: skip
        assert cells.sum() == round(0.5 * size**2)
        values.add(mix.lam)
    assert len(values) > 1


def test_blocks_are_blocky_and_discrete_cells_are_not() -> None:
    def agreement(mask: str) -> float:
        agree = []
        for seed in range(100):
            cells = MixMask(mask, 8)(images(2, 8, 8), seeded(seed)).mask
            agree.append((cells[1:] == cells[:-1]).double().mean().item())
        return sum(agree) / len(agree)

    assert agreement("block") > 0.75
    assert agreement("random") == pytest.approx(31 / 63, abs=0.03)  # of equal halves


def test_ratio_uniform() -> None:
    mixer = MixMask("random", 16, (0.25, 0.75))
    lams = torch.tensor([mixer(images(2), seeded(seed)).lam for seed in range(400)])
    assert lams.min() >= 0.25
    assert lams.max() <= 0.75
    assert lams.mean() == pytest.approx(0.5, abs=0.03)
    assert lams.std() == pytest.approx(0.5 / 12**0.5, abs=0.02)


def test_uniform_over_everything_is_never_empty_or_full() -> None:
    mixer = MixMask("random", 2, (0.0, 1.0))
    lams = {mixer(images(2), seeded(seed)).lam for seed in range(100)}
    assert lams == {0.25, 0.5, 0.75}


def test_grid_sizes_of_the_paper() -> None:
    assert [default_grid_size(side) for side in (32, 64, 224)] == [2, 4, 8]
    assert [default_grid_size(side) for side in (8, 96, 128, 384)] == [2, 4, 8, 16]
    mix = MixMask("random")(images(2, 64, 128), seeded())
    cells = mix.mask.view(4, 16, 4, 32).double().mean(dim=(1, 3))
    assert set(cells.unique().tolist()) == {0.0, 1.0}


def test_bernoulli_cells() -> None:
    """Independent cells, neither all nor none: against the binomial distribution."""
    mixer, counts = MixMask("random", 2, 0.3, exact=False), torch.zeros(5)
    for seed in range(2000):
        mix = mixer(images(2, 4, 4), seeded(seed))
        counts[round(4 * mix.lam)] += 1
        assert mix.lam == mix.mask.double().mean().item()
    expected = torch.tensor([math.comb(4, n) * 0.3**n * 0.7 ** (4 - n) for n in range(5)])
    expected[[0, 4]] = 0
    assert (counts / 2000 - expected / expected.sum()).abs().max() < 0.035  # 3 sigma
    wider = MixMask("random", 8, 0.5, exact=False)
    assert len({wider(images(2, 8, 8), seeded(seed)).lam for seed in range(20)}) > 5


def test_blocks_of_beit_may_fall_short_and_never_exceed() -> None:
    for size in (2, 4, 8):
        mixer = MixMask("block", size, 0.5, exact=False)
        lams = [mixer(images(2, size, size), seeded(seed)).lam for seed in range(300)]
        assert max(lams) <= 0.5
        if size == 2:  # hardly a rectangle fits: its smallest has four cells
            assert lams.count(0.0) > 250
        else:
            assert sum(lams) / 300 > 0.49
        assert any(0 < lam < 0.5 for lam in lams)
    x = images()
    torch.manual_seed(0)
    mix = next(m for m in (MixMask(exact=False)(x) for _ in range(9)) if m.lam == 0)
    assert torch.equal(mix.images, x.flip(0))  # all of it is the partner's


@every_mixer
def test_memory_format(mixer: Mixer) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = images().to(memory_format=layout)
        for mix in mixer([x, x]):
            assert all(view.is_contiguous(memory_format=layout) for view in mix.views)


class Stripes(Mixer):
    """A mixer of one's own."""

    def draw(
        self, images: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor | float, Tensor]:
        width = images.shape[3]
        start = int(torch.randint(4, (), generator=generator))
        own = (torch.arange(width) + start) % 4 > 0
        return own.expand(images.shape[2], width), torch.arange(len(images)).roll(1)


def test_a_mixer_of_ones_own() -> None:
    mix, other = Stripes()([images(), images() + 1])
    assert mix.lam == 0.75
    assert torch.equal(mix.images, torch.where(mix.mask, images(), images().roll(1, dims=0)))
    assert torch.equal(mix.mask, other.mask)
    assert combine(Stripes(), UnMix())[0].__class__ is Stripes


def draw_in_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(0)  # the same on all ranks, as mmengine and Lightning set it
    mixer = MixMask("random", 8, (0.0, 1.0), permutation="random")
    mix = mixer(images())
    torch.save((mix.lam, mix.mask, mix.permutation), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_ranks_draw_different_mixes_under_the_same_seed(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(draw_in_process, (str(tmp_path),), nprocs=2)
    (lam, mask, partner), (lam_1, mask_1, partner_1) = (
        torch.load(tmp_path / str(rank)) for rank in range(2)
    )
    assert lam != lam_1
    assert not torch.equal(mask, mask_1)
    assert not torch.equal(partner, partner_1)


# -- mixed images --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 5, 6])
@pytest.mark.parametrize("permutation", ["inverse", "random"])
def test_every_pixel_is_that_of_equation_1(batch: int, permutation: str) -> None:
    x = images(batch)
    mix = MixMask("random", 8, 0.3, permutation)(x, seeded(1))
    if permutation == "inverse":
        assert mix.permutation.tolist() == [batch - 1 - i for i in range(batch)]
    for i in range(batch):
        partner = int(mix.permutation[i])
        for row in range(32):
            for col in range(32):
                source = x[i] if mix.mask[row, col] else x[partner]
                assert torch.equal(mix.images[i, :, row, col], source[:, row, col])
    assert sorted(mix.permutation.tolist()) == list(range(batch))
    assert torch.equal(mix.permutation[mix.inverse], torch.arange(batch))


def test_the_middle_of_an_odd_batch_stays_as_it_is() -> None:
    x = images(5)
    for mixer in (MixMask(), UnMix(1.0), UnMix(0.0)):
        mixed = mixer(x).images
        assert torch.allclose(mixed[2], x[2], atol=1e-15)
        assert not torch.allclose(mixed[1], x[1])


def test_mixup_and_cutmix() -> None:
    x = images()
    kinds, lams, areas = [], [], []
    for seed in range(400):
        mix = UnMix(prob_global=0.3)(x, seeded(seed))
        assert torch.equal(mix.permutation, torch.arange(5, -1, -1))
        kinds.append(mix.mask is None)
        if mix.mask is None:
            lams.append(mix.lam)
            assert torch.allclose(mix.images, mix.lam * x + (1 - mix.lam) * x.flip(0))
            continue
        assert mix.lam == mix.mask.double().mean().item()
        assert 0 < mix.lam < 1
        assert torch.equal(mix.images, torch.where(mix.mask, x, x.flip(0)))
        rows, cols = ~mix.mask.all(dim=1), ~mix.mask.all(dim=0)
        assert torch.equal(~mix.mask, rows[:, None] & cols)  # a box
        for line in (rows, cols):  # without holes
            assert line.int().diff().abs().sum() <= 2
        areas.append(1 - mix.lam)
    assert sum(kinds) / 400 == pytest.approx(0.3, abs=0.07)
    assert torch.tensor(lams).mean() == pytest.approx(0.5, abs=0.08)  # Beta(1, 1)
    assert torch.tensor(lams).std() == pytest.approx(12**-0.5, abs=0.05)
    assert min(areas) > 0
    assert max(areas) < 1


def test_beta() -> None:
    lams = torch.tensor([UnMix(1.0, alpha=8.0)(images(2), seeded(s)).lam for s in range(400)])
    assert lams.mean() == pytest.approx(0.5, abs=0.03)
    assert lams.var() == pytest.approx(1 / (4 * 17), rel=0.25)


@pytest.mark.parametrize("fill", ["zero", "mean", "noise"])
def test_erased_images_complete_each_other(fill: str) -> None:
    x = images()
    mix = EraseMask(fill, "random", 4, 0.25)(x, seeded())
    assert torch.equal(mix.permutation, torch.arange(6))
    first, second = mix.views
    assert torch.equal(first[:, :, mix.mask], x[:, :, mix.mask])
    assert torch.equal(second[:, :, ~mix.mask], x[:, :, ~mix.mask])
    erased = torch.where(mix.mask, second, first)
    if fill == "zero":
        assert (erased == 0).all()
    elif fill == "mean":
        mean = torch.stack([torch.stack([c.mean() for c in image]) for image in x])
        assert torch.allclose(erased, mean[:, :, None, None].expand_as(x))
    else:
        assert erased.mean() == pytest.approx(0, abs=0.05)
        assert erased.std() == pytest.approx(1, abs=0.05)
        assert not torch.equal(erased[0], erased[1])


def test_erasing_in_reversed_order() -> None:
    x = images()
    mix = EraseMask("zero", second="reversed")(x, seeded())
    assert len(mix.views) == 1
    assert mix.permutation.tolist() == [5, 4, 3, 2, 1, 0]
    assert torch.equal(mix.images, torch.where(mix.mask, x, torch.zeros_like(x)))


@every_mixer
def test_generator_dtype_pickle(mixer: Mixer) -> None:
    state = torch.get_rng_state()
    first, again = (mixer(images(), seeded(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    others = [mixer(images(), seeded(seed)).images for seed in range(4, 10)]
    assert not all(torch.equal(first.images, other) for other in others)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert mixer(images().to(dtype)).images.dtype == dtype
    assert vars(pickle.loads(pickle.dumps(mixer))) == vars(mixer)
    torch.manual_seed(0)
    one, other = mixer(images()), mixer(images())
    torch.manual_seed(0)
    assert torch.equal(mixer(images()).images, one.images)
    assert torch.equal(mixer(images()).images, other.images)


@every_mixer
def test_views_share_everything(mixer: Mixer) -> None:
    views = [images(), images() + 1, images() * 2]
    mixes = mixer(views, seeded(5))
    for view, mix in zip(views, mixes, strict=True):
        assert mix.lam == mixes[0].lam
        assert torch.equal(mix.permutation, mixes[0].permutation)
        assert len(mix.views) == len(mixes[0].views)
        if getattr(mixer, "fill", None) == "noise":
            assert torch.equal(mix.images[:, :, mix.mask], view[:, :, mix.mask])
            continue
        alone = mixer(view, seeded(5))  # the same numbers are drawn for a single view
        for part, expected in zip(mix.views, alone.views, strict=True):
            assert torch.equal(part, expected)
    assert torch.equal(mixer(views[:1], seeded(5))[0].images,
                       mixer(views[0], seeded(5)).images)  # fmt: skip


def test_combine() -> None:
    mixing, unmix = combine(MixMask(), UnMix())
    x = images(32)
    assert torch.equal(unmix(x).permutation, torch.arange(31, -1, -1))
    permutation = mixing(x).permutation
    assert not torch.equal(permutation, torch.arange(31, -1, -1))  # table 2: different
    assert torch.equal(permutation.sort().values, torch.arange(32))
    same, _ = combine(MixMask(permutation="inverse"), UnMix())
    assert torch.equal(same(x).permutation, torch.arange(31, -1, -1))  # table 2: same
    (alone,) = combine(MixMask(), None)
    assert torch.equal(alone(x).permutation, torch.arange(31, -1, -1))
    assert combine(None, None) == ()
    mine = MixMask()
    combine(mine, UnMix())
    assert mine.permutation is None


# -- loss against explicit pairs -----------------------------------------------------------

QUEUE = F.normalize(torch.randn(8, 10, generator=seeded(9), dtype=torch.float64), dim=0)


def queue_loss(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    positive = (query * key).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ QUEUE], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def queue_pairs(query: Tensor, key: Tensor, positives: list[int]) -> Tensor:
    """Eq. 6 with everything written out: query i against key ``positives[i]``."""
    losses = []
    for i, j in enumerate(positives):
        q, k = query[i] / query[i].norm(), key[j] / key[j].norm()
        exps = [torch.exp(q @ k / 0.2)] + [torch.exp(q @ QUEUE[:, n] / 0.2) for n in range(10)]
        losses.append(-torch.log(exps[0] / sum(exps)))
    return sum(losses) / len(losses)


def batch_loss(query: Tensor, key: Tensor, temperature: float = 0.5) -> Tensor:
    both = F.normalize(torch.cat([query, key]), dim=1)
    logits = both @ both.T / temperature
    logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(both)).roll(len(query)))


def batch_pairs(query: Tensor, key: Tensor, positives: list[int]) -> Tensor:
    """NT-Xent: a row for every query and every key, against all others of both."""
    everything = [*query, *key]
    number = len(query)
    losses = []
    for i, j in enumerate(positives):
        for anchor, positive in ((i, number + j), (number + j, i)):
            a = everything[anchor]
            exps = {
                other: torch.exp(a @ b / (a.norm() * b.norm()) / 0.5)
                for other, b in enumerate(everything)
                if other != anchor
            }
            losses.append(-torch.log(exps[positive] / sum(exps.values())))
    return sum(losses) / len(losses)


def cosine_loss(query: Tensor, key: Tensor) -> Tensor:
    return -F.cosine_similarity(query, key, dim=1).mean()


def cosine_pairs(query: Tensor, key: Tensor, positives: list[int]) -> Tensor:
    pairs = [(query[i], key[j]) for i, j in enumerate(positives)]
    return -sum(q @ k / (q.norm() * k.norm()) for q, k in pairs) / len(pairs)


LOSSES = {
    "queue": (queue_loss, queue_pairs),
    "in-batch": (batch_loss, batch_pairs),
    "cosine": (cosine_loss, cosine_pairs),
}
every_loss = pytest.mark.parametrize(("loss", "pairs"), LOSSES.values(), ids=LOSSES)


def contents(mixer: Mixer, batch: int, seed: int) -> tuple[Mix, Tensor]:
    """The mix, and ``(V, B, B)``: the share of image j in image i of each of its views.

    Read off the pixels alone: image j is black but for its own channel.
    """
    x = torch.eye(batch, dtype=torch.float64)[:, :, None, None].expand(-1, -1, 32, 32)
    mix = mixer(x.contiguous(), seeded(seed))
    return mix, torch.stack([view.mean(dim=(2, 3)) for view in mix.views])


@every_loss
@pytest.mark.parametrize("batch", [5, 6])
@pytest.mark.parametrize(
    "mixer",
    [
        MixMask("random", 4, 0.25),
        MixMask("random", 4, (0.1, 0.9), "random"),
        MixMask("block", 8, 0.7, "random"),
        UnMix(1.0),
        UnMix(0.0, permutation="random"),
        EraseMask("zero", "random", 4, 0.25),
    ],
    ids=repr,
)
def test_loss_equals_explicit_pairs(
    loss: Callable, pairs: Callable, batch: int, mixer: Mixer
) -> None:
    """Value and gradient; who is paired with whom is read off the pixels, not off the mix."""
    cycles = 0
    for seed in range(4):
        mix, shares = contents(mixer, batch, seed)
        draws = seeded(seed + 50)
        leaves = [
            torch.randn(batch, 8, generator=draws, dtype=torch.float64).requires_grad_()
            for _ in range(2 + len(mix.views))
        ]
        query, key, *mixed = leaves
        value = MixMaskLoss(loss)(query, key, (mixed, mix))

        identity = list(range(batch))
        weight = shares[0].diagonal().min()  # λ: what is left of an image in its own mix
        expected = pairs(query, key, identity) + weight * pairs(mixed[0], key, identity)
        if isinstance(mixer, EraseMask):
            expected = expected + (1 - weight) * pairs(mixed[1], key, identity)
        else:
            others = shares[0] - torch.diag(shares[0].diagonal())
            stays = others.sum(dim=1) == 0
            partner = torch.where(stays, torch.arange(batch), others.argmax(dim=1)).tolist()
            cycles += any(partner[partner[i]] != i for i in identity)
            expected = expected + (1 - weight) * pairs(mixed[0], key, partner)
        assert abs(value - expected) < 1e-6
        for got, want in zip(torch.autograd.grad(value, leaves, retain_graph=True),
                             torch.autograd.grad(expected, leaves), strict=True):  # fmt: skip
            assert (got - want).abs().max() < 1e-6
    if getattr(mixer, "permutation", None) == "random":
        assert cycles, "no permutation that differs from its inverse was tried"


@every_loss
def test_equals_the_reversed_queries_of_equation_6(loss: Callable, pairs: Callable) -> None:
    """q_down is the mixed queries in reversed order, beside the keys as they are."""
    mix = MixMask("random", 4, 0.25, "random")(images(7), seeded(2))
    assert not torch.equal(mix.permutation, mix.inverse)
    query, key = torch.randn(2, 7, 8, generator=seeded(), dtype=torch.float64)
    reversed_order = mix.lam * loss(query, key) + (1 - mix.lam) * loss(query[mix.inverse], key)
    wrong = mix.lam * loss(query, key) + (1 - mix.lam) * loss(query[mix.permutation], key)
    assert torch.allclose(mixture(loss, query, key, mix), reversed_order, atol=1e-12)
    assert not torch.allclose(mixture(loss, query, key, mix), wrong, atol=1e-4)


def test_two_mixes_add_up() -> None:
    x = images()
    mixes = [mixer(x, seeded()) for mixer in combine(MixMask(), UnMix())]
    query, key, *mixed = torch.randn(4, 6, 8, generator=seeded(), dtype=torch.float64)
    branches = list(zip(mixed, mixes, strict=True))
    total = MixMaskLoss(queue_loss)(query, key, *branches)
    parts = [queue_loss(query, key)] + [mixture(queue_loss, m, key, mix) for m, mix in branches]
    assert torch.allclose(total, sum(parts), atol=1e-12)
    assert MixMaskLoss(queue_loss)(query, key) == queue_loss(query, key)


class Queue(nn.Module):
    """A criterion that enqueues at every call, and counts them."""

    seen: ClassVar[list[Tensor]] = []  # of the class: what an instance holds is put back

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", QUEUE.clone())
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls = 0
        self.mean: Tensor | None = None  # as the covariance of lightly's TiCoLoss
        self.norms: list[Tensor] = []

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        self.seen.append(self.queue.clone())
        self.calls += 1
        self.mean = query.mean(dim=0) if self.mean is None else (self.mean + query.mean(dim=0)) / 2
        self.norms.append(self.mean.norm())
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.seen[-1]], dim=1)
        for k in key.detach():
            self.queue[:, self.pointer] = k
            self.pointer.add_(1).remainder_(self.queue.shape[1])
        return F.cross_entropy(logits * self.scale, torch.zeros(len(query), dtype=torch.long))


def test_a_queue_is_enqueued_once_and_all_terms_see_the_same() -> None:
    criterion, stock = Queue(), Queue()
    mixes = [mixer(images(), seeded()) for mixer in combine(MixMask(), UnMix())]
    for step in range(3):
        before = criterion.queue.clone()
        query, key, *mixed = torch.randn(4, 6, 8, generator=seeded(step), dtype=torch.float64)
        criterion.seen.clear()
        loss = MixMaskLoss(criterion)(query, key, *zip(mixed, mixes, strict=True))
        stock(query, key)
        assert len(criterion.seen) == 5 + 1
        assert all(torch.equal(seen, before) for seen in criterion.seen)
        assert criterion.calls == stock.calls == step + 1
        assert torch.equal(criterion.mean, stock.mean)
        assert torch.equal(torch.stack(criterion.norms), torch.stack(stock.norms))
        assert torch.equal(criterion.queue, stock.queue)
        assert criterion.pointer == stock.pointer == 6 * (step + 1) % 10
        loss.backward()
    assert criterion.scale.grad is not None
    assert isinstance(criterion.queue, Tensor)
    assert list(MixMaskLoss(criterion).state_dict()) == [
        "criterion.scale", "criterion.queue", "criterion.pointer",
    ]  # fmt: skip


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MixMask("blocked"), ValueError, "mask must be one of .*, got 'blocked'"),
        (lambda: MixMask(grid_size=1), ValueError, "grid_size must be at least 2, got 1"),
        (lambda: MixMask(grid_size=2.0), TypeError, "grid_size must be an int, got 2.0"),
        (lambda: MixMask(ratio=0.0), ValueError, r"ratio must be in \(0, 1\), got 0.0"),
        (lambda: MixMask(ratio=1), ValueError, r"ratio must be in \(0, 1\), got 1"),
        (lambda: MixMask(ratio=(0.5, 0.5)), ValueError, "ratio .* 0 <= a < b <= 1, got"),
        (lambda: MixMask(ratio=(-0.1, 0.5)), ValueError, "ratio .* 0 <= a < b <= 1, got"),
        (lambda: MixMask(ratio=(0.1, 0.2, 0.3)), ValueError, "a number or a pair"),
        (lambda: MixMask(ratio="half"), TypeError, "ratio must be a number, got 'half'"),
        (lambda: MixMask(permutation="flip"), ValueError, "permutation must be one of"),
        (lambda: UnMix(1.5), ValueError, r"prob_global must be in \[0, 1\], got 1.5"),
        (lambda: UnMix("0.5"), TypeError, "prob_global must be a number, got '0.5'"),
        (lambda: UnMix(alpha=0), ValueError, "alpha must be positive and finite, got 0"),
        (lambda: UnMix(permutation=None), ValueError, "permutation must be one of"),
        (lambda: EraseMask("black"), ValueError, "fill must be one of .*, got 'black'"),
        (lambda: EraseMask(second="none"), ValueError, "second must be one of .*, got 'none'"),
        (lambda: EraseMask(ratio=2), ValueError, r"ratio must be in \(0, 1\), got 2"),
        (lambda: MixMaskLoss(3), TypeError, "criterion must be callable, got 3"),
        (lambda: combine(0.5, None), TypeError, "mixing must be a MixMask, an EraseMask or"),
        (lambda: combine(UnMix(), None), TypeError, "mixing must be a MixMask, an EraseMask or"),
        (lambda: combine(None, MixMask()), TypeError, "unmix must be an UnMix, got MixMask"),
    ],
)
def test_rejects_at_construction(make: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@every_mixer
def test_rejects_images(mixer: Mixer) -> None:
    with pytest.raises(TypeError, match="images must be a tensor .* or a list of them, got dict"):
        mixer({"images": images()})
    with pytest.raises(TypeError, match="images must be floating, got torch.uint8"):
        mixer(images().byte())
    with pytest.raises(ValueError, match=r"must have shape \(B >= 1, C.*\), got \(3, 32, 32\)"):
        mixer(images()[0])
    with pytest.raises(ValueError, match=r"must have shape \(B >= 1, C.*\), got \(0, 3, 32, 32\)"):
        mixer(images()[:0])
    with pytest.raises(ValueError, match=r"equal shapes, got \[\(6, 3, 32, 32\), \(6, 3, 16, 16"):
        mixer([images(), images(6, 16, 16)])
    with pytest.raises(ValueError, match="views must be at least one"):
        mixer([])
    if isinstance(mixer, EraseMask) and mixer.second == "complement":
        assert mixer(images(1)).images.shape == (1, 3, 32, 32)
    else:
        with pytest.raises(ValueError, match="a batch of 1: nothing to mix with"):
            mixer(images(1))


def test_rejects_a_grid_larger_than_the_image() -> None:
    for mixer in (MixMask(grid_size=48), EraseMask(grid_size=48)):
        with pytest.raises(ValueError, match="grid_size must be at most .*, got 48 for 32 x 64"):
            mixer(images(2, 32, 64))
    with pytest.raises(ValueError, match="at least 2 x 2 pixels, got 1 x 8"):
        UnMix(0.0)(images(2, 1, 8))


def test_rejects_a_criterion_without_scalar_and_wrong_batches() -> None:
    mix = MixMask()(images())
    query, key = torch.randn(2, 6, 8, generator=seeded())
    with pytest.raises(TypeError, match=r"must return a scalar tensor, got shape \(6,\)"):
        MixMaskLoss(lambda q, k: (q * k).sum(dim=1))(query, key, (query, mix))
    with pytest.raises(TypeError, match="must return a scalar tensor, got float"):
        MixMaskLoss(lambda q, k: 0.5)(query, key)
    loss_fn = MixMaskLoss(cosine_loss)
    with pytest.raises(ValueError, match="queries must have the 6 rows of the mixed batch, got 5"):
        loss_fn(query, key, (query[:5], mix))
    with pytest.raises(ValueError, match="key must have the 6 rows of the mixed batch, got 5"):
        mixture(cosine_loss, query, key[:5], mix)
    with pytest.raises(ValueError, match="queries must be those of the 2 batches .*, got 1"):
        loss_fn(query, key, (query, EraseMask()(images())))


# -- device --------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_mixer
def test_no_wait_for_the_device(mixer: Mixer) -> None:
    x = images().cuda()
    host = mixer(images(), seeded(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        mix = mixer(x, seeded(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mix.images.is_cuda
    assert mix.lam == host.lam
    assert torch.equal(mix.permutation.cpu(), host.permutation)
    assert torch.allclose(mix.images.cpu(), host.images)
    with pytest.raises(ValueError, match="generator must be on the CPU, got one on cuda"):
        mixer(x, torch.Generator("cuda"))
