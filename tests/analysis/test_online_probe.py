import logging

import pytest
import torch
from torch import Tensor

from mim_plugins.analysis import LinearProbe
from mim_plugins.analysis.online_probe import FeatureProbe


def batch(size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    features = torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))
    return features, features.argmax(dim=1)


def test_unlabelled_images_do_not_count() -> None:
    features, labels = batch()
    some, every = FeatureProbe(6), FeatureProbe(6)
    expected = every.step(features[:20], labels[:20])
    labels[20:] = -1
    found = some.step(features, labels)
    assert {name: value.item() for name, value in found.items()} == {
        name: value.item() for name, value in expected.items()
    }
    assert torch.equal(some.classifier.classifier.weight, every.classifier.classifier.weight)
    assert some.step(features, torch.full((32,), -1)) == {}
    assert torch.equal(some.classifier.classifier.weight, every.classifier.classifier.weight)
    assert some.evaluate(features, labels) == every.evaluate(features[:20], labels[:20])


def test_per_cent() -> None:
    features, labels = batch(200)
    probe = FeatureProbe(6, knn_k=1)
    for _ in range(200):
        result = probe.step(features, labels)
    assert result["probe_top1"] > 80
    found = probe.evaluate(features, labels, (features, labels))
    assert found["knn_top1"] == 100
    assert found["linear_top1"] == 100 * probe.classifier.top1(features, labels).item() > 80


def test_diverged_features_give_nan() -> None:
    features, labels = batch()
    probe = FeatureProbe(6)
    found = probe.step(features * torch.nan, labels)
    assert all(value.isnan() for value in found.values())
    found = probe.evaluate(features, labels, (features * torch.nan, labels))
    assert all(value != value for value in found.values())


@pytest.mark.parametrize("wrong", [6, -2])
def test_wrong_labels_are_named_in_every_batch(wrong: int) -> None:
    probe = FeatureProbe(6)
    features, labels = batch()
    probe.step(features, labels)
    labels[7] = wrong
    with pytest.raises(ValueError, match=rf"labels must be in \[0, num_classes=6\).*\[{wrong}\]"):
        probe.step(features, labels)
    with pytest.raises(ValueError, match="validation images: labels"):
        probe.evaluate(features, labels)


@pytest.mark.parametrize("changed", ["classes", "features", "optimizer", "nothing"])
def test_changed_probe_on_resume(changed: str, caplog: pytest.LogCaptureFixture) -> None:
    def sgd(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    features, labels = batch()
    old = FeatureProbe(6)
    old.step(features, labels)
    new = FeatureProbe(
        9 if changed == "classes" else 6, optimizer=sgd if changed == "optimizer" else None
    )
    new.load(old.state())
    assert new.state() is old.state() or new.state()["probe"].keys() == old.state()["probe"].keys()
    wide = torch.cat([features, features], dim=1) if changed == "features" else features
    with caplog.at_level(logging.WARNING, logger="mim_plugins"):
        new.step(wide, labels)
    assert len(caplog.records) == (changed != "nothing")
    old.step(features, labels)
    same = new.classifier.classifier.weight.shape == old.classifier.classifier.weight.shape
    assert same == (changed not in ("classes", "features"))
    steps = int(new.classifier.norm.num_batches_tracked)
    assert steps == (1 if changed in ("classes", "features") else 2)
    if changed == "nothing":
        assert torch.equal(new.classifier.classifier.weight, old.classifier.classifier.weight)
    new.step(wide, labels)  # and goes on


def test_probe_is_float32_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        probe = LinearProbe(6, 6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in probe.parameters()} == {torch.float32}
    assert probe.norm.running_mean.dtype == torch.float32
    probe.step(*batch())
