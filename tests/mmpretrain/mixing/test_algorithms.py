"""MixMask in MoCo, BYOL, SimCLR and SimSiam beside the stock algorithms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmpretrain.models import RandomBatchAugment
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn import functional as F

from mim_plugins.mixmask import EraseMask

from ..siamese import ALGORITHMS, BATCH, DIM, QUEUE, SIZE, TEMPERATURE, build, train, views

MIXERS: dict[str, dict[str, Any]] = {
    "mixmask": {"mixing": {"grid_size": 4, "ratio": 0.3, "permutation": "random"}},
    "unmix": {"unmix": {"prob_global": 0.0}},
    "both": {"mixing": {"grid_size": 4, "ratio": (0.2, 0.8)}, "unmix": {"prob_global": 1.0}},
    "erase": {"mixing": {"type": "EraseMask", "grid_size": 4, "ratio": 0.3}},
    "erase reversed": {"mixing": {"type": "EraseMask", "ratio": 0.3, "second": "reversed"}},
}


# -- beside stock (neutral = stock: tests/robustness) --------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_mixing_the_state_dict_is_stock(algorithm: str) -> None:
    stock, ours = build(algorithm, plugin=False), build(algorithm, **MIXERS["both"])
    train(ours, 1)
    stock.load_state_dict(ours.state_dict(), strict=True)
    assert [name for name, _ in ours.named_modules()] == [n for n, _ in stock.named_modules()]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["mixmask", "both", "erase"])
def test_the_original_term_is_the_stock_loss(algorithm: str, name: str) -> None:
    """Batch statistics included, since mixed images have a forward of their own."""
    stock, ours = build(algorithm, plugin=False), build(algorithm, **MIXERS[name])
    expected = stock.loss(views(), None)["loss"]
    torch.testing.assert_close(ours.loss(views(), None)["loss_orig"], expected)


# -- the mixed terms -----------------------------------------------------------------------


def compose(own: Tensor, other: Tensor, mask: Tensor | None, lam: float) -> Tensor:
    """Eq. 1 for one image, pixel by pixel; a global mixture without a mask."""
    if mask is None:
        return lam * own + (1 - lam) * other
    image = own.clone()
    for y in range(SIZE):
        for x in range(SIZE):
            if not mask[y, x]:
                image[:, y, x] = other[:, y, x]
    return image


def info_nce(query: Tensor, positive: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Eq. 6 for one query, unit vectors, term by term."""
    logits = torch.stack([query @ key / TEMPERATURE for key in [positive, *negatives]])
    return -torch.log(logits[0].exp() / logits.exp().sum())


def pair_distance(
    model: nn.Module, algorithm: str, mixed: list[Tensor], keys: list[Tensor]
) -> Callable[[int, int], Tensor]:
    """The distance of mixed image i and image j, summed over directions, as stock weighs them."""

    def encode(batch: Tensor) -> Tensor:
        return model.neck(model.backbone(batch))[0]

    if algorithm == "MoCo":
        q = F.normalize(encode(mixed[0]), dim=1)
        negatives = list(model.queue.T)
        return lambda i, j: info_nce(q[i], keys[0][j], negatives)
    if algorithm == "SimCLR":
        unit = [F.normalize(encode(batch), dim=1) for batch in mixed]

        def pair(i: int, j: int) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for q, k in zip(unit, keys, strict=True):
                rest = [v for n, v in enumerate(q) if n != i] + [
                    v for n, v in enumerate(k) if n != j
                ]
                total = total + (info_nce(q[i], k[j], rest) + info_nce(k[j], q[i], rest)) / 4
            return total

        return pair
    predicted = [model.head.predictor([encode(batch)])[0] for batch in mixed]
    scale = 2 if algorithm == "BYOL" else 0.5
    return lambda i, j: (
        -scale
        * sum(
            F.cosine_similarity(q[i], k[j].detach(), dim=0)
            for q, k in zip(predicted, keys, strict=True)
        )
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MIXERS)
def test_terms_against_explicit_pairs(algorithm: str, name: str) -> None:
    """Every pixel and every pair by hand, in float64: values and gradients (Eqs. 1-6)."""
    # Evaluation mode: without batch statistics images do not influence each other.
    model = build(algorithm, **MIXERS[name]).double().eval()
    stock = build(algorithm, plugin=False).double().eval()
    originals = [view.double() for view in views()]
    queue = model.queue.clone() if algorithm == "MoCo" else None
    torch.manual_seed(7)
    losses = model.loss(originals, None)
    sum(losses.values()).backward()
    gradients = [parameter.grad.clone() for parameter in model.backbone.parameters()]
    model.zero_grad()

    # The keys: of unmixed images, after the one update of the moving average.
    if algorithm == "MoCo":
        keys = [F.normalize(model.encoder_k(originals[1])[0], dim=1).detach()]
        model.queue.copy_(queue)
    elif algorithm == "BYOL":
        keys = [model.target_net(view)[0] for view in reversed(originals)]
    else:
        keys = [model.neck(model.backbone(view))[0] for view in reversed(originals)]
        if algorithm == "SimCLR":
            keys = [F.normalize(key, dim=1) for key in keys]

    torch.manual_seed(7)
    terms = {}
    for mixer in model.mixers:
        mix = mixer(originals[0])
        lam, partner = mix.lam, mix.permutation.tolist()
        if mix.mask is not None:
            assert lam == mix.mask.sum().item() / SIZE**2
        erase = isinstance(mixer, EraseMask)
        batches = originals[:1] if algorithm == "MoCo" else originals
        others = [torch.zeros_like(b) if erase else b[partner] for b in batches]
        first, second = (
            [
                torch.stack([compose(*pixels, mask, lam) for pixels in zip(b, o, strict=True)])
                for b, o in zip(batches, others, strict=True)
            ]
            for mask in (mix.mask, mix.mask if mix.mask is None else ~mix.mask)
        )
        up = pair_distance(model, algorithm, first, keys)
        # Erased images have no other to be compared with: the second term takes the complement.
        down = up if mix.complement is None else pair_distance(model, algorithm, second, keys)
        total = sum(lam * up(i, i) + (1 - lam) * down(i, partner[i]) for i in range(BATCH))
        terms[f"loss_{type(mixer).__name__.lower()}"] = total / BATCH
    assert list(losses) == ["loss_orig", *terms]
    for key, term in terms.items():
        torch.testing.assert_close(losses[key], term, rtol=1e-9, atol=1e-9)
    sum(terms.values()).backward()
    stock.loss(originals, None)["loss"].backward()
    for found, ours, theirs in zip(
        gradients, model.backbone.parameters(), stock.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(found, ours.grad + theirs.grad, rtol=1e-7, atol=1e-9)


def test_both_branches_take_different_permutations() -> None:
    """Table 2: different by default, the same with one argument."""
    model = build("MoCo", **MIXERS["both"])
    assert [mixer.permutation for mixer in model.mixers] == ["random", "inverse"]
    same = {"mixing": {"permutation": "inverse"}, "unmix": {}}
    assert [mixer.permutation for mixer in build("MoCo", **same).mixers] == ["inverse", "inverse"]
    alone = build("MoCo", mixing={}).mixers[0]
    assert alone(views()[0]).permutation.tolist() == [3, 2, 1, 0]


# -- one side effect per step --------------------------------------------------------------


@pytest.mark.parametrize("concat_views", [False, True])
def test_moco_enqueues_and_updates_once(concat_views: bool) -> None:
    stock = build("MoCo", plugin=False)
    ours = build("MoCo", **MIXERS["both"], concat_views=concat_views)
    seen: list[Tensor] = []
    ours.encoder_k.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for model in (stock, ours):
        model.loss(views(), None)
    assert ours.queue_ptr.item() == BATCH < QUEUE
    assert ours.encoder_k.steps.item() == 1
    # Keys are those of stock, up to the order in which the shuffled batch is summed.
    torch.testing.assert_close(ours.queue, stock.queue)
    assert len(seen) == 1
    assert {row.sum().item() for row in seen[0]} == {row.sum().item() for row in views()[1]}


def test_symmetric_moco_against_two_stock_steps() -> None:
    """MoCo's CIFAR demo: both directions, their keys enqueued together; mixed terms of both."""
    originals = [view.double() for view in views()]
    ours = build("MoCo", symmetric=True, **MIXERS["mixmask"]).double().eval()
    stock = build("MoCo", plugin=False).double().eval()
    ours.queue_len, stock.queue_len = 2 * BATCH, BATCH  # of 12 columns, so that both fit
    queue = stock.queue.clone()
    torch.manual_seed(7)
    losses = ours.loss(originals, None)
    expected, keys = 0.0, []
    for pair in (originals, originals[::-1]):
        stock.queue.copy_(queue)
        stock.queue_ptr.zero_()
        expected = expected + stock.loss(list(pair), None)["loss"]
        stock.encoder_k.update_parameters = lambda model: None  # once per step
        keys.append(stock.queue[:, :BATCH].clone())
    torch.testing.assert_close(losses["loss_orig"], expected)
    torch.testing.assert_close(ours.queue[:, : 2 * BATCH], torch.cat(keys[::-1], dim=1))
    assert ours.encoder_k.steps == 1

    torch.manual_seed(7)
    mixes = ours.mixers[0](originals)
    encode = lambda images: F.normalize(ours.neck(ours.backbone(images))[0], dim=1)  # noqa: E731
    total = 0.0
    for mix, key in zip(mixes, keys, strict=True):  # of the other view
        logits = encode(mix.images) @ torch.cat([key, queue], dim=1) / TEMPERATURE
        for weight, positive in ((mix.lam, torch.arange(BATCH)), (1 - mix.lam, mix.permutation)):
            of_key = logits[:, :BATCH].gather(1, positive[:, None])
            rows = torch.cat([of_key, logits[:, BATCH:]], dim=1)
            total = total - weight * rows.log_softmax(dim=1)[:, 0].mean()
    torch.testing.assert_close(losses["loss_mixmask"], total)
    alone = build("MoCo", symmetric=True).double().eval()
    alone.queue_len = 2 * BATCH
    torch.testing.assert_close(alone.loss(originals, None)["loss_orig"], expected)


def test_split_batch_norm_in_a_config() -> None:
    """As so many stock models on a part each; its weights are those of batch norm."""
    norm_cfg = {"type": "SplitBN", "num_splits": 2}
    backbone = {"type": "ResNet_CIFAR", "depth": 18, "stem_channels": 8, "base_channels": 8}
    split = MODELS.build({**backbone, "norm_cfg": norm_cfg})
    stock = MODELS.build(backbone)
    stock.load_state_dict(split.state_dict(), strict=True)
    x = views()[0]
    (found,) = split(x)
    parts = [stock(x[part::2])[0] for part in range(2)]
    torch.testing.assert_close(found[0::2], parts[0])
    torch.testing.assert_close(found[1::2], parts[1])
    split.eval()
    assert split(x)[0].isfinite().all()


def test_byol_updates_once_and_never_mixes_its_targets() -> None:
    stock, ours = build("BYOL", plugin=False), build("BYOL", **MIXERS["both"])
    seen: list[Tensor] = []
    ours.target_net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for model in (stock, ours):
        model.loss(views(), None)
    assert all(torch.equal(a, b) for a, b in zip(seen, views(), strict=True))
    assert ours.target_net.steps.item() == 1
    for found, expected in zip(
        ours.target_net.parameters(), stock.target_net.parameters(), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_forwards_of_the_encoder(algorithm: str) -> None:
    """One extra forward per mixer and query view, or one in all with ``concat_views``."""
    stock = {"MoCo": 1, "BYOL": 2, "SimCLR": 1, "SimSiam": 2}[algorithm]
    for arguments, expected in (
        (MIXERS["mixmask"], 2 * stock),
        (MIXERS["both"], 3 * stock),
        (MIXERS["erase"], 3 * stock),
        (MIXERS["erase reversed"], 2 * stock),
        ({**MIXERS["both"], "concat_views": True}, 1),
    ):
        model = build(algorithm, **arguments)
        sizes: list[int] = []
        model.backbone.register_forward_pre_hook(
            lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        model.loss(views(), None)
        assert len(sizes) == expected
        if expected > 1:
            assert set(sizes) == {2 * BATCH if algorithm == "SimCLR" else BATCH}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_concatenated_views_differ_by_batch_statistics_only(algorithm: str) -> None:
    found = []
    for training in (True, False):
        for concat_views in (False, True):
            model = build(algorithm, **MIXERS["both"], concat_views=concat_views).train(training)
            torch.manual_seed(7)
            found.append(torch.stack(list(model.loss(views(), None).values())))
    separate, joint, separate_eval, joint_eval = found
    torch.testing.assert_close(joint_eval, separate_eval)
    assert not torch.allclose(joint, separate, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MIXERS)
def test_it_trains_reproducibly(algorithm: str, name: str) -> None:
    losses = train(build(algorithm, **MIXERS[name]), 3)
    assert losses == train(build(algorithm, **MIXERS[name]), 3)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[0] != train(build(algorithm, plugin=False), 1)[0]


# -- the other framework -------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MIXERS)
def test_both_frameworks_agree(algorithm: str, name: str) -> None:
    """Same weights, images, mask and permutation: lightly's own losses in ``MixMaskLoss``."""
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss

    from mim_plugins.lightly import MixMaskLoss

    model = build(algorithm, **MIXERS[name]).eval()
    originals = views()
    queue = model.queue.clone() if algorithm == "MoCo" else None
    torch.manual_seed(7)
    found = sum(model.loss(originals, None).values())
    torch.manual_seed(7)
    queried = originals[:1] if algorithm == "MoCo" else originals
    mixes = [mixer(queried) for mixer in model.mixers]

    encode = nn.Sequential(model.backbone, model.neck)
    project = lambda images: encode(images)[0]  # noqa: E731
    if algorithm == "MoCo":
        criterion = NTXentLoss(TEMPERATURE, memory_bank_size=(QUEUE, DIM))
        criterion.memory_bank.bank = queue.T.contiguous()
        criterion.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        keys, query, weights = [model.encoder_k(originals[1])[0]], project, [1.0]
    elif algorithm == "SimCLR":
        criterion = NTXentLoss(TEMPERATURE)
        keys, query, weights = [project(view) for view in reversed(originals)], project, [0.5, 0.5]
    else:
        criterion = NegativeCosineSimilarity()
        target = model.target_net if algorithm == "BYOL" else encode
        keys = [target(view)[0].detach() for view in reversed(originals)]
        query = lambda images: model.head.predictor([project(images)])[0]  # noqa: E731
        weights = [2.0, 2.0] if algorithm == "BYOL" else [0.5, 0.5]
    loss_fn = MixMaskLoss(criterion)
    total = 0.0
    for i, weight in enumerate(weights):
        mixed = [([query(images) for images in mix[i].views], mix[i]) for mix in mixes]
        total = total + weight * loss_fn(query(originals[i]), keys[i], *mixed)
    torch.testing.assert_close(found, total, rtol=0, atol=1e-5)
    if algorithm == "MoCo":  # both enqueued the same, once
        torch.testing.assert_close(criterion.memory_bank.bank.T, model.queue)
        assert criterion.memory_bank.bank_ptr.item() == model.queue_ptr.item() == BATCH


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mixing": True}, TypeError, "mixing must be a dict"),
        ({"mixing": {}, "mixmask": {}}, ValueError, "are one argument, got both"),
        ({"unmix": 0.5}, TypeError, "unmix must be a dict"),
        ({"mixing": {"type": "UnMix"}}, TypeError, "must be a MixMask, an EraseMask or"),
        ({"unmix": {"type": "MixMask"}}, TypeError, "unmix must be an UnMix"),
        ({"mixmask": {"ratio": 1.0}}, ValueError, "ratio must be in .*, got 1"),
        ({"mixmask": {"grid_size": 1}}, ValueError, "grid_size must be at least 2, got 1"),
        ({"unmix": {"prob_global": 2}}, ValueError, "prob_global must be in .*, got 2"),
        ({"mixmask": {}, "concat_views": 1}, TypeError, "concat_views must be a bool, got 1"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build("MoCo", **arguments)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bad_views(algorithm: str) -> None:
    model = build(algorithm, mixing={})
    first, second = views()
    with pytest.raises(TypeError, match="inputs must be a list of two views, got Tensor"):
        model.loss(first, None)
    with pytest.raises(ValueError, match="inputs must be two views, got 3"):
        model.loss([first, second, second], None)
    with pytest.raises(ValueError, match=r"equal size, got \(4, 3, 16, 16\) and \(3, 3, 16, 16\)"):
        model.loss([first, second[:3]], None)
    with pytest.raises(ValueError, match="grid_size must be at most the image's side"):
        build(algorithm, mixing={"grid_size": 32}).loss([first, second], None)


@pytest.mark.parametrize("algorithm", ["BYOL", "SimCLR", "SimSiam"])
def test_an_odd_batch_works(algorithm: str) -> None:
    losses = build(algorithm, **MIXERS["both"]).loss(views(batch=5), None)
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_batch_of_one_image_is_the_stock_step(algorithm: str) -> None:
    stock, ours = (build(algorithm, plugin).eval() for plugin in (False, True))
    ours.mixers = build(algorithm, **MIXERS["both"]).mixers
    with pytest.warns(UserWarning, match="a batch of one image has none to mix with"):
        found = ours.loss(views(batch=1), None)
    assert found == stock.loss(views(batch=1), None)
    assert list(found) == ["loss"]


def test_mixing_and_its_old_name() -> None:
    new, old = (build("MoCo", **{name: {"grid_size": 4}}) for name in ("mixing", "mixmask"))
    assert train(new, 2) == train(old, 2)
    assert "mixers=[MixMask(mask='block', grid_size=4" in repr(new)


# -- batch augmentation --------------------------------------------------------------------


def test_batch_augment_mixes_scores_by_pixels() -> None:
    augment = RandomBatchAugment({"type": "MixMask", "grid_size": 4, "ratio": (0.1, 0.9)})
    classes = 5
    images = torch.arange(classes).float()[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    torch.manual_seed(0)
    for _ in range(10):
        mixed, scores = augment(images, torch.eye(classes))
        shares = torch.stack([(mixed[:, 0] == c).float().mean(dim=(1, 2)) for c in range(classes)])
        torch.testing.assert_close(scores, shares.T)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(classes))


def test_batch_augment_stands_where_cutmix_does() -> None:
    """In a stock classifier, through its data preprocessor."""
    model = MODELS.build(
        {
            "type": "ImageClassifier",
            "data_preprocessor": {"num_classes": 3, "to_onehot": True},
            "backbone": {"type": "ResNet_CIFAR", "depth": 18, "base_channels": 8},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {
                "type": "LinearClsHead",
                "num_classes": 3,
                "in_channels": 64,
                "loss": {"type": "CrossEntropyLoss", "use_soft": True},
            },
            "train_cfg": {"augments": {"type": "MixMask", "grid_size": 4}},
        }
    )
    samples = [DataSample().set_gt_label(label % 3) for label in range(6)]
    batch = {"inputs": list(views(batch=6)[0] * 255), "data_samples": samples}
    torch.manual_seed(1)
    data = model.data_preprocessor(batch, training=True)
    scores = torch.stack([sample.gt_score for sample in data["data_samples"]])
    assert set(scores.unique().tolist()) <= {0.0, 0.5, 1.0}
    assert 0.5 in scores
    assert torch.isfinite(model(**data, mode="loss")["loss"])
    sample = DataSample().set_gt_label(0)
    single = {"inputs": list(views(batch=1)[0] * 255), "data_samples": [sample]}
    with pytest.warns(UserWarning, match="a batch of one image"):  # the last of an epoch
        data = model.data_preprocessor(single, training=True)
    assert data["data_samples"][0].gt_score.tolist() == [1.0, 0.0, 0.0]
    assert "MixMask(" in repr(model.data_preprocessor.batch_augments.augments[0])
