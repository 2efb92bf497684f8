"""Mixing in lightly: the loss around its criteria, and wrap() on siamese modules."""

import collections
import copy
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import numpy
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchmetrics
from lightly.loss import DCLLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import NNMemoryBankModule
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from mim_plugins.lightly import MixMaskLoss, wrap
from mim_plugins.lightly.mixing import Mixing
from mim_plugins.mixmask import EraseMask, Mix, MixMask, UnMix
from mim_plugins.regularizers import UniformityLoss

from ..modules import MAE
from ..siamese import BYOL, MoCo, SimCLR, SimSiam

ALL = [MoCo, BYOL, SimCLR, SimSiam]
every_model = pytest.mark.parametrize("make", ALL)


def views(batch: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 3, 16, 16, generator=generator, dtype=dtype) for _ in range(2)]


def make_twice(make: Callable) -> tuple[Any, Any]:
    torch.manual_seed(0)
    one = make().double()
    if make is MoCo:  # a distance between queries and keys from the start
        for parameter in one.key_projection_head.parameters():
            nn.init.normal_(parameter, std=0.3)
    other = copy.deepcopy(one)
    for model in (one, other):
        model.log = lambda name, value, model=model, **kwargs: model.logged.append((name, value))
        model.logged = []
    return one, other


class Seen:
    """Keeps the mixes it hands out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mixes: list[Mix] = []

    def __call__(self, *args: Any) -> list[Mix]:
        mixes = super().__call__(*args)
        self.mixes.append(mixes[0])
        return mixes


class SeenMixMask(Seen, MixMask):
    pass


class SeenUnMix(Seen, UnMix):
    pass


class SeenEraseMask(Seen, EraseMask):
    pass


# -- the modules against the same algorithm written out ------------------------------------


def mixed(x: Tensor, mix: Mix) -> Tensor:
    if mix.mask is None:
        return mix.lam * x + (1 - mix.lam) * x[mix.permutation]
    return mix.mask * x + ~mix.mask * x[mix.permutation]


def in_queue(query: Tensor, key: Tensor, bank: Tensor) -> Tensor:
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ bank.T], dim=1) / 0.2
    return -logits.log_softmax(dim=1)[:, 0].mean()


def in_batch(first: Tensor, second: Tensor) -> Tensor:
    z = F.normalize(torch.cat([first, second]), dim=1)
    logits = (z @ z.T / 0.3).fill_diagonal_(-torch.inf)
    return -logits.log_softmax(dim=1)[range(len(z)), torch.arange(len(z)).roll(len(first))].mean()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return -(F.normalize(first, dim=1) * F.normalize(second, dim=1)).sum(dim=1).mean()


def soft(distance: Callable, query: Tensor, key: Tensor, mix: Mix) -> Tensor:
    return mix.lam * distance(query, key) + (1 - mix.lam) * distance(query, key[mix.permutation])


def moco(model: MoCo, x: list[Tensor], mixes: list[Mix]) -> Tensor:
    bank = model.criterion.memory_bank.bank.clone()
    query = model.query(x[1])
    update_momentum(model.backbone, model.key_backbone, m=0.9)
    update_momentum(model.projection_head, model.key_projection_head, m=0.9)
    key = model.key(x[0])
    model.criterion.memory_bank._dequeue_and_enqueue(F.normalize(key, dim=1))
    loss = in_queue(query, key, bank)
    for mix in mixes:
        query = model.query(mixed(x[1], mix))
        loss = loss + soft(lambda q, k: in_queue(q, k, bank), query, key, mix)
    return loss


def byol(model: BYOL, x: list[Tensor], mixes: list[Mix]) -> Tensor:
    update_momentum(model.backbone, model.teacher["backbone"], m=0.9)
    update_momentum(model.projection_head, model.teacher["head"], m=0.9)
    keys = [model.key(view) for view in x]
    loss = 2 * cosine(model.query(x[1]), keys[0]) + 2 * cosine(model.query(x[0]), keys[1])
    for mix in mixes:
        loss = loss + 2 * soft(cosine, model.query(mixed(x[1], mix)), keys[0], mix)
        loss = loss + 2 * soft(cosine, model.query(mixed(x[0], mix)), keys[1], mix)
    return loss


def simclr(model: SimCLR, x: list[Tensor], mixes: list[Mix]) -> Tensor:
    z0, z1 = model.query(torch.cat(x)).chunk(2)
    loss = in_batch(z0, z1)
    for mix in mixes:
        m0, m1 = model.query(torch.cat([mixed(view, mix) for view in x])).chunk(2)
        loss = loss + (soft(in_batch, m0, z1, mix) + soft(in_batch, m1, z0, mix)) / 2
    return loss


def simsiam(model: SimSiam, x: list[Tensor], mixes: list[Mix]) -> Tensor:
    (z0, p0), (z1, p1) = model(x[0]), model(x[1])
    loss = 0.5 * (cosine(p1, z0) + cosine(p0, z1))
    for mix in mixes:
        (_, m0), (_, m1) = (model(mixed(view, mix)) for view in x)
        loss = loss + 0.5 * (soft(cosine, m1, z0, mix) + soft(cosine, m0, z1, mix))
    return loss


EXPLICIT = {MoCo: moco, BYOL: byol, SimCLR: simclr, SimSiam: simsiam}


def check_gradients(model: nn.Module, reference: nn.Module) -> None:
    for (name, got), want in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), name
        if got.grad is not None:
            assert torch.allclose(got.grad, want.grad, rtol=1e-6, atol=1e-9), name


@every_model
@pytest.mark.parametrize("batch", [6, 7])
@pytest.mark.parametrize(
    "branches",
    [
        {"mixing": lambda: SeenMixMask("random", 4, 0.25)},
        {"mixing": lambda: SeenMixMask(ratio=(0.2, 0.8), permutation="random")},
        {"unmix": lambda: SeenUnMix(1.0)},
        {"mixing": lambda: SeenMixMask("random", 4, 0.3), "unmix": lambda: SeenUnMix(0.0)},
    ],
    ids=["inverse", "random", "unmix", "both"],
)
def test_equals_the_algorithm_written_out(
    make: Callable, batch: int, branches: dict[str, Callable]
) -> None:
    """Loss, gradients and every buffer, over several steps."""
    model, reference = make_twice(make)
    if make is MoCo:  # one queue, the random start included
        assert torch.equal(model.criterion.memory_bank.bank, reference.criterion.memory_bank.bank)
    mixers = {name: mixer() for name, mixer in branches.items()}
    wrap(model, **mixers)
    for step in range(3):
        x = views(batch, step)
        torch.manual_seed(step)
        output = model.training_step([x, None], 0)
        loss = output["loss"] if isinstance(output, dict) else output
        loss.backward()
        torch.manual_seed(step)
        expected = EXPLICIT[make](reference, x, [mixer.mixes[-1] for mixer in mixers.values()])
        expected.backward()
        assert abs(loss - expected) < 1e-6
        check_gradients(model, reference)
        for (name, got), want in zip(
            model.state_dict().items(), reference.state_dict().values(), strict=True
        ):
            assert torch.allclose(got, want, atol=1e-9), name
        if make is MoCo:
            banks = [m.criterion.memory_bank for m in (model, reference)]
            assert torch.allclose(banks[0].bank, banks[1].bank, atol=1e-7)
            assert torch.equal(banks[0].bank_ptr, banks[1].bank_ptr)
    assert all(len(mixer.mixes) == 3 for mixer in mixers.values())
    if len(mixers) == 2:
        one, other = (mixer.mixes[-1].permutation for mixer in mixers.values())
        assert not torch.equal(one, other)


@every_model
def test_erasing_takes_two_passes(make: Callable) -> None:
    """λ times the erased image and 1 - λ times its complement, each against its own key."""
    model, reference = make_twice(make)
    mixer = SeenEraseMask("zero", "random", 4, 0.25)
    wrap(model, mixing=mixer)
    x = views()
    torch.manual_seed(0)
    output = model.training_step([x, None], 0)
    loss = output["loss"] if isinstance(output, dict) else output
    loss.backward()
    mix = mixer.mixes[0]
    own, rest = (Mix(mix.images, 1.0, torch.arange(6), mask) for mask in (mix.mask, ~mix.mask))
    # Mixing with black images of one's own kind is erasing.
    torch.manual_seed(0)
    explicit = EXPLICIT[make]
    erased = [x_ * own.mask for x_ in x], [x_ * rest.mask for x_ in x]
    plain = copy.deepcopy(reference)
    torch.manual_seed(0)
    stock = explicit(plain, x, [])
    # explicit(x, [mix]) - explicit(x, []) is one soft term; let the mix hand out what is erased.
    terms = []
    for part in erased:
        other = copy.deepcopy(reference)
        handed = iter(part if make in (SimCLR, SimSiam) else [part[1], part[0]])
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.mixed", lambda view, mix, handed=handed: next(handed))
            terms.append(explicit(other, x, [own]) - stock)
    expected = stock + mix.lam * terms[0] + (1 - mix.lam) * terms[1]
    assert abs(loss - expected) < 1e-9


@every_model
def test_effects_of_a_step_are_the_stock_ones(make: Callable) -> None:
    """Bit for bit: momentum encoder, its batch statistics, queue, the stock loss."""
    model, stock = make_twice(make)
    wrap(model, mixing=MixMask(), unmix=UnMix())
    x = views()
    for each in (model, stock):
        torch.manual_seed(3)
        each.training_step([x, None], 0)
    weights = stock.state_dict()
    moved = [
        key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])
    ]
    assert moved
    # The queries' batch statistics see the mixed images, as any further pass.
    assert all("running" in key or "num_batches" in key for key in moved)
    assert not any(key.startswith(("key_", "teacher")) for key in moved)
    if make is MoCo:
        banks = [each.criterion.memory_bank for each in (model, stock)]
        assert torch.equal(banks[0].bank, banks[1].bank)
        assert int(banks[0].bank_ptr) == 6
        assert model.logged[0][0] == "train_loss"
        assert torch.equal(model.logged[0][1], stock.logged[0][1])
    names = [name for name, _ in model.logged]
    assert names == ["train_loss"] * (make is MoCo) + ["loss_mixmask", "loss_unmix"]


class Counter:
    """What a user may keep in an attribute."""

    def __init__(self) -> None:
        self.seen = collections.deque([torch.zeros(8)], maxlen=9)


class Stateful(SimSiam):
    """A step that changes state of every kind, and whose loss depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(8))
        self.register_buffer("scratch", None)
        self.bank = NNMemoryBankModule(size=(20, 8))
        self.metric = torchmetrics.MeanMetric()
        self.hidden = [nn.Linear(1, 1)]  # in a list, so that it is not a child
        self.register_parameter("own", nn.Parameter(torch.ones(1), requires_grad=False))
        self.calls, self.counter, self.history = 0, Counter(), {"norms": []}
        self.generator, self.dice = torch.Generator(), random.Random(0)
        self.array = numpy.zeros(8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x0, x1 = batch[0] if self.calls % 2 else batch[0][::-1]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        self.calls += 1
        self.center.mul_(0.9).add_(0.1 * z0.mean(dim=0))
        self.scratch = p0  # with its graph
        self.covariance = z0.T @ z0 + getattr(self, "covariance", 0)
        self.metric(z0.std())
        self.counter.seen.append(z0.mean(dim=0))
        self.history["norms"].append(p0.norm())
        self.array += z0.mean(dim=0).numpy()
        with torch.no_grad():
            self.own.data.mul_(0.9)
            self.hidden[0].weight.mul_(0.9)
        noise = torch.rand((), generator=self.generator) + self.dice.random()
        z1 = self.bank(z1 - self.center.detach(), update=True)
        return noise * self.criterion(z1, p0) + self.criterion(z0, p1)


def snapshot(model: Stateful) -> dict[str, Any]:
    return {
        **dict(model.named_buffers()),
        "covariance": model.covariance,
        "own": model.own.data,
        "hidden": model.hidden[0].weight.data,
        "seen": torch.stack(list(model.counter.seen)[1:]),
        "norms": torch.stack(model.history["norms"]),
        "array": torch.from_numpy(model.array),
        "metric": model.metric.compute(),
        "updates": torch.tensor([model.calls, model.metric._update_count, model.dice.random()]),
        "generator": model.generator.get_state(),
    }


def test_all_state_is_that_of_the_stock_step() -> None:
    """Of every kind, bit for bit, after each of several steps; but for the norm's statistics."""
    stock, model = make_twice(Stateful)
    wrap(model, mixing=MixMask(), unmix=UnMix())
    for step in range(3):
        states = []
        for each in (stock, model):
            torch.manual_seed(step)
            loss = each.training_step([views(seed=step), None], 0)
            states.append(snapshot(each))
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            if "running" not in name and "num_batches" not in name:
                assert torch.equal(states[1][name], value), name
        loss.backward()  # no graph was broken by what was put back
        assert model.backbone[0].weight.grad.isfinite().all()


def test_a_replay_starts_from_the_state_of_the_stock_step() -> None:
    """With images of which mixing changes nothing, each term of Eq. 4 is the stock loss."""
    stock, model = make_twice(Stateful)
    wrap(model, mixing=MixMask())
    x = [view[:1].repeat(6, 1, 1, 1) for view in views()]
    for each in (stock, model):
        each.eval()
    for _ in range(3):
        expected = stock.training_step([x, None], 0)
        assert torch.allclose(model.training_step([x, None], 0), 2 * expected)


def test_nothing_is_logged_twice() -> None:
    model, _ = make_twice(SimSiam)
    written: list[str] = []
    logger = SimpleNamespace(experiment=SimpleNamespace(add=written.append))
    model._trainer = SimpleNamespace(loggers=[logger], logger=None, training=True)

    def step(self: SimSiam, batch: Any, batch_idx: int) -> Tensor:
        self._trainer.loggers[0].experiment.add("step")
        return SimSiam.training_step(self, batch, batch_idx)

    mixing = Mixing(model, MixMask(), UnMix())
    mixing.step(model, partial(step, model), [views(), None], 0)
    assert written == ["step"]
    assert model._trainer.loggers == [logger]


class Batch(NamedTuple):
    views: list[Tensor]
    label: Tensor


@pytest.mark.parametrize(
    ("batch", "get"),
    [
        (lambda x: {"a": x[0], "b": x[1], "name": "f"}, lambda b: (b["a"], b["b"])),
        (lambda x: (x[0], x[1]), lambda b: b),
        (lambda x: Batch(x, torch.zeros(6)), lambda b: b.views),
        (lambda x: [x, torch.zeros(6), ["f"] * 6], lambda b: b[0]),
    ],
    ids=["dict", "tuple", "namedtuple", "list"],
)
def test_batches_of_any_form(batch: Callable, get: Callable) -> None:
    class Any_(SimSiam):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return SimSiam.training_step(self, [get(batch)], batch_idx)

    losses = []
    for make, form in ((SimSiam, lambda x: [x]), (Any_, batch)):
        model, _ = make_twice(make)
        wrap(model, mixing=MixMask())
        torch.manual_seed(0)
        losses.append(model.training_step(form(views()), 0))
    assert losses[0] == losses[1]


def test_a_batch_of_one_image_is_the_stock_step() -> None:
    stock, model = make_twice(SimCLR)
    wrap(model.eval(), mixing=MixMask(), unmix=UnMix())
    with pytest.warns(UserWarning, match="a batch of one image has none to mix with"):
        loss = model.training_step([views(1), None], 0)
    assert loss == stock.eval().training_step([views(1), None], 0)
    assert not model.logged


def test_views_keep_their_memory_format() -> None:
    model, _ = make_twice(SimSiam)
    formats = []
    model.backbone.register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    wrap(model, mixing=MixMask(), unmix=UnMix())
    model.training_step([[v.to(memory_format=torch.channels_last) for v in views()], None], 0)
    assert formats == [True] * 6


def test_keys_are_not_encoded_again() -> None:
    """MoCo's key encoder is called once; the query encoder once more per mix."""
    model, _ = make_twice(MoCo)
    calls = {"backbone": 0, "key_backbone": 0}
    for name in calls:

        def count(*args: Any, name: str = name) -> None:
            calls[name] += 1

        getattr(model, name).register_forward_hook(count)
    wrap(model, mixing=MixMask(), unmix=UnMix())
    model.training_step([views(), None], 0)
    assert calls == {"backbone": 3, "key_backbone": 1}


# -- training ------------------------------------------------------------------------------


def loader(batches: int = 8, batch: int = 6) -> torch.utils.data.DataLoader:
    first, second = views(batches * batch, dtype=torch.float32)
    dataset = [([a, b], 0, "") for a, b in zip(first, second, strict=True)]
    return torch.utils.data.DataLoader(dataset, batch_size=batch)


def fit(model: pl.LightningModule, folder: Path, **arguments: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=arguments.pop("epochs", 1), accelerator="cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **arguments,
    )  # fmt: skip
    trainer.fit(model, loader())
    return trainer


@every_model
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_trains_and_its_checkpoint_is_stock(make: Callable, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, stock = make(), make()
    wrap(model, mixing=MixMask(), unmix=UnMix())
    trainer = fit(model, tmp_path, precision=precision)
    assert {"loss_mixmask", "loss_unmix"} <= set(trainer.callback_metrics)
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=False)["state_dict"]
    assert list(saved) == list(stock.state_dict())
    assert all(value.isfinite().all() for value in saved.values())
    stock.load_state_dict(saved, strict=True)
    fit(stock, tmp_path)  # goes on unwrapped
    assert type(stock) is make


def test_copy_and_pickle_stay_wrapped() -> None:
    model, _ = make_twice(SimSiam)
    del model.log
    wrap(model, mixing=MixMask("grid"))
    x = views()
    losses = []
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(0)
        losses.append(other.training_step([x, None], 0))
    stock, _ = make_twice(SimSiam)
    assert losses[0] == losses[1] == losses[2] != stock.training_step([x, None], 0)


# -- the loss alone ------------------------------------------------------------------------


def test_loss_around_the_memory_bank() -> None:
    torch.manual_seed(0)
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(20, 8)).double()
    stock = copy.deepcopy(criterion)
    loss_fn = MixMaskLoss(criterion)
    x = views()[0]
    mixes = [MixMask("random", permutation="random")(x), UnMix()(x)]
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        query, key, *queries = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
        for tensor in (query, *queries):
            tensor.requires_grad_()
        bank = criterion.memory_bank.bank.clone()
        loss = loss_fn(query, key, *zip(queries, mixes, strict=True))
        expected = in_queue(query, key, bank) + sum(
            soft(lambda q, k, bank=bank: in_queue(q, k, bank), q, key, mix)
            for q, mix in zip(queries, mixes, strict=True)
        )
        assert abs(loss - expected) < 1e-9
        leaves = [query, *queries]
        for got, want in zip(
            torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            assert (got - want).abs().max() < 1e-9
        stock(query, key)
        assert torch.equal(criterion.memory_bank.bank, stock.memory_bank.bank)
        assert torch.equal(criterion.memory_bank.bank_ptr, stock.memory_bank.bank_ptr)


@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        (NTXentLoss(temperature=0.3), in_batch),
        (NegativeCosineSimilarity(), cosine),
        (cosine, cosine),
        (DCLLoss(), DCLLoss()),
    ],
    ids=["NTXent", "cosine", "function", "DCL"],
)
def test_loss_around_others(criterion: Callable, formula: Callable) -> None:
    mix = MixMask("random", permutation="random")(views(7)[0])
    query, key, mixed_query = torch.randn(3, 7, 8, dtype=torch.float64)
    loss = MixMaskLoss(criterion)(query, key, (mixed_query, mix))
    expected = formula(query, key) + soft(formula, mixed_query, key, mix)
    assert abs(loss - expected) < 1e-9


# -- bad input -----------------------------------------------------------------------------


def test_rejects_at_construction() -> None:
    with pytest.raises(TypeError, match="mixing must be a MixMask, .*, got 0.5"):
        wrap(SimSiam(), mixing=0.5)
    with pytest.raises(TypeError, match="unmix must be an UnMix, got MixMask"):
        wrap(SimSiam(), unmix=MixMask())
    with pytest.raises(TypeError, match="SimSiam has no MaskedVisionTransformer of lightly"):
        wrap(SimSiam(), mixing=MixMask(), regularizers=[UniformityLoss()])
    model = SimSiam()
    model.criterion = None
    with pytest.raises(TypeError, match="SimSiam has no module named criterion"):
        wrap(model, mixing=MixMask())
    model = SimSiam()
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="SimSiam optimizes manually"):
        wrap(model, mixing=MixMask())
    model = wrap(SimSiam(), mixing=MixMask())
    with pytest.raises(ValueError, match="wrapped already, with mixing=.*MixMask"):
        wrap(model, mixing=MixMask())


def test_rejects_batches() -> None:
    model = wrap(SimSiam().double(), mixing=MixMask())
    with pytest.raises(ValueError, match=r"views must .* equal shapes, got \[\(6, 3, 16, 16\), "):
        model.training_step([[views()[0], views()[1][..., :8]], None], 0)
    with pytest.raises(TypeError, match=r"batch must hold views \(B, C, H, W\) .*, got dict"):
        model.training_step({"views": torch.zeros(6, 8)}, 0)
    model = wrap(MAE(), mixing=MixMask())
    with pytest.raises(TypeError, match=r"projections \(B, D\), got tensors of \[\(6, 48, 48\)"):
        model.training_step([[torch.rand(6, 3, 32, 32)] * 2, None], 0)


@every_model
def test_without_gradients_it_is_the_stock_step(make: Callable) -> None:
    """As in a validation step that calls the training step."""
    stock, model = make_twice(make)
    wrap(model, mixing=MixMask(), unmix=UnMix())
    losses = []
    for each in (stock, model):
        torch.manual_seed(0)  # MoCo shuffles
        with torch.no_grad():
            output = each.training_step([views(), None], 0)
        losses.append(output["loss"] if isinstance(output, dict) else output)
    assert torch.equal(*losses)
    assert [name for name, _ in model.logged] == [name for name, _ in stock.logged]


@pytest.mark.parametrize("make", [MoCo, SimSiam])
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_parts(make: Callable, in_place: bool) -> None:
    """Backbone and criterion compiled by the user: the same losses as without."""
    plain, compiled = make_twice(make)
    for name in ("backbone", "criterion"):
        part = getattr(compiled, name)
        if in_place:
            part.compile(backend="eager")
        else:
            setattr(compiled, name, torch.compile(part, backend="eager"))
    losses = []
    for model in (plain, compiled):
        wrap(model, mixing=MixMask(), unmix=UnMix())
        torch.manual_seed(0)
        losses.append(torch.stack([model.training_step([views(), None], 0) for _ in range(3)]))
    torch.testing.assert_close(*losses)
    torch._dynamo.reset()


class Odd(SimSiam):
    """A training step that a test fills in."""

    step: Callable

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return type(self).step(self, *batch[0])


def attempt(
    step: Callable, monkeypatch: pytest.MonkeyPatch, criterion: nn.Module | None = None
) -> Any:
    monkeypatch.setattr(Odd, "step", step, raising=False)
    model = Odd().double()
    model.criterion = criterion or model.criterion
    model.log = lambda *args, **kwargs: None
    model.register_parameter("teacher", nn.Parameter(torch.ones(1)))
    wrap(model, mixing=MixMask())
    return model.training_step([views(), None], 0)


def test_rejects_steps_it_cannot_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="training step of Odd did not call self.criterion"):
        attempt(lambda self, x0, x1: self(x0)[1].sum(), monkeypatch)

    def three(self: Odd, x0: Tensor, x1: Tensor) -> Tensor:
        return self.criterion(self(x0)[1], self(x1)[1], self(x0)[0])

    with pytest.raises(TypeError, match="criterion must be called with two tensors, got .'Tensor"):
        attempt(three, monkeypatch, nn.TripletMarginLoss())

    def no_scalar(self: Odd, x0: Tensor, x1: Tensor) -> Tensor:
        return self.criterion(self(x0)[0], self(x1)[1]).mean()

    with pytest.raises(TypeError, match=r"criterion must return a scalar tensor, got .*\(6,\)"):
        attempt(no_scalar, monkeypatch, nn.PairwiseDistance())

    times = iter([2, 1])

    def varying(self: Odd, x0: Tensor, x1: Tensor) -> Tensor:
        return sum(self.criterion(self(x0)[0], self(x1)[1]) for _ in range(next(times)))

    with pytest.raises(RuntimeError, match="calls self.criterion a varying number of times"):
        attempt(varying, monkeypatch)

    for write in (lambda p: p.mul_(0.9), lambda p: p.data.mul_(0.9)):

        def own_momentum(self: Odd, x0: Tensor, x1: Tensor, write: Callable = write) -> Tensor:
            with torch.no_grad():
                write(self.teacher)
            return self.criterion(self(x0)[0], self(x1)[1])

        with pytest.raises(RuntimeError, match="updates teacher, .* would be updated twice"):
            attempt(own_momentum, monkeypatch)

    def method(self: Odd, x0: Tensor, x1: Tensor) -> Tensor:
        self.criterion.reset()
        return self.criterion(self(x0)[0], self(x1)[1])

    class Resettable(NegativeCosineSimilarity):
        def reset(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="uses Resettable.reset, which may not run twice"):
        attempt(method, monkeypatch, Resettable())

    def iterate(self: Odd, x0: Tensor, x1: Tensor) -> Tensor:
        return self.criterion(self(x0)[0], self(x1)[1]) * next(self.criterion.weights)

    criterion = NegativeCosineSimilarity()
    criterion.weights = (1.0 for _ in range(9))
    with pytest.raises(RuntimeError, match=r"Similarity.weights, a generator, cannot be copied"):
        attempt(iterate, monkeypatch, criterion)
    assert attempt(lambda self, x0, x1: None, monkeypatch) is None  # a batch skipped

    def apart(self: Odd, x0: Tensor, x1: Tensor) -> Tensor:
        p = self(x1)[1]
        self.log("similarity", self.criterion(self(x0)[0].detach(), p))
        return p.square().mean()

    with pytest.raises(RuntimeError, match=r"loss of Odd's training step does not depend on self"):
        attempt(apart, monkeypatch)
    with pytest.raises(RuntimeError, match="a wrapped Odd needs gradients"):
        attempt(
            lambda self, x0, x1: self.criterion(self(x0)[0].detach(), self(x1)[1].detach()),
            monkeypatch,
        )
