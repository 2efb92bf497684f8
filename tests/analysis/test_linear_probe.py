import pytest
import torch
import torch.nn.functional as F

from mim_plugins.analysis.linear_probe import LinearProbe


def batches(number: int, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(number, size, 6, generator=generator) * 3 + 1
    return [(each, each.argmax(dim=1)) for each in features]


def test_step_is_softmax_regression_on_standardised_features() -> None:
    """Gradient descent against the gradient written out by hand, in float64."""
    probe = LinearProbe(6, 6, lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    weight, bias = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    close = {"atol": 1e-5, "rtol": 1e-5}
    for features, labels in batches(5):
        loss, top1 = probe.step(features, labels)
        features = features.double()
        x = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
        chance = (x @ weight.T + bias).softmax(dim=1)
        expected = -chance[range(32), labels].log().mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert top1 == pytest.approx((chance.argmax(1) == labels).double().mean().item())
        error = (chance - F.one_hot(labels, 6)) / 32
        weight -= 0.5 * error.T @ x
        bias -= 0.5 * error.sum(0)
        torch.testing.assert_close(probe.classifier.weight.detach().double(), weight, **close)
        torch.testing.assert_close(probe.classifier.bias.detach().double(), bias, **close)


def test_learns_without_touching_features_or_randomness() -> None:
    state = torch.get_rng_state()
    probe = LinearProbe(6, 6)
    train = batches(300)
    inputs = train[0][0].clone().requires_grad_()
    probe.step(inputs * 1.0, train[0][1])
    assert inputs.grad is None
    with torch.no_grad():  # hooks run without gradients
        losses = [probe.step(*batch)[0].item() for batch in train]
    assert losses[-1] < 0.8 * losses[0]
    assert probe.top1(*batches(1, 2000)[0]) > 0.8
    assert torch.equal(state, torch.get_rng_state())


def test_one_image_is_normalised_by_running_statistics() -> None:
    probe = LinearProbe(6, 6)
    probe.step(*batches(1)[0])
    features, labels = batches(1, 1)[0]
    loss, _ = probe.step(features, labels)
    assert torch.isfinite(loss)
    assert probe.norm.num_batches_tracked == 1


def test_resumed_probe_continues() -> None:
    one, other = LinearProbe(6, 6), LinearProbe(6, 6)
    for batch in batches(4):
        one.step(*batch)
    other.load_training_state(one.training_state())
    for batch in batches(3):
        one.step(*batch)
        other.step(*batch)
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert torch.equal(one.norm.running_var, other.norm.running_var)


@pytest.mark.parametrize(("dim", "classes", "named"), [(0, 2, "dim"), (2, 0, "num_classes")])
def test_wrong_arguments_are_named(dim: int, classes: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must"):
        LinearProbe(dim, classes)
