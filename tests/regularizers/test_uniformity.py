import math

import pytest
import torch
import torch.nn.functional as F

from mim_plugins.regularizers import UniformityLoss, uniformity


def brute_force(features: torch.Tensor) -> float:
    """Eq. 11 pair by pair in Python floats."""
    rows = features.double().tolist()
    total = 0.0
    for a in rows:
        for b in rows:
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            total += dot**2 / (sum(x * x for x in a) * sum(y * y for y in b))
    return total / len(rows) ** 2


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (1, 4), (4, 1)])
def test_equals_the_formula_pair_by_pair(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    assert uniformity(features).item() == pytest.approx(brute_force(features), abs=1e-6)


@pytest.mark.parametrize(("num", "dim"), [(6, 40), (40, 6)])
def test_both_matrix_forms_give_the_same_value_and_gradient(num: int, dim: int) -> None:
    """Which form is taken depends on the shape; here each is computed by hand."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(num, dim, dtype=torch.float64, generator=generator, requires_grad=True)
    (gradient,) = torch.autograd.grad(uniformity(features), features)
    unit = F.normalize(features, dim=1)
    for products in (unit @ unit.T, unit.T @ unit):
        loss = products.square().sum() / num**2
        torch.testing.assert_close(uniformity(features), loss, rtol=1e-12, atol=0)
        (expected,) = torch.autograd.grad(loss, features, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_gradient_is_the_numerical_one(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(uniformity, (features.requires_grad_(),))


def test_closed_forms() -> None:
    assert uniformity(torch.eye(6)[:4]).item() == pytest.approx(1 / 4)  # orthonormal: 1 / n
    assert uniformity(torch.randn(5, 1) @ torch.randn(1, 8)).item() == pytest.approx(1)  # a line
    # A tight frame, here three directions at 120 degrees, reaches the minimum 1 / D.
    angles = torch.arange(3) * 2 * math.pi / 3
    frame = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert uniformity(frame).item() == pytest.approx(1 / 2)
    # a of one direction, b of an orthogonal one: (a^2 + b^2) / (a + b)^2
    groups = torch.eye(3)[[0, 0, 0, 1, 1]] * torch.tensor([[1.0], [9], [0.1], [4], [2]])
    assert uniformity(groups).item() == pytest.approx((9 + 4) / 25)


def test_pairs_of_an_image_with_itself_only_rescale() -> None:
    features = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    features.requires_grad_()
    unit = F.normalize(features, dim=1)
    squares = (unit @ unit.T).square()
    without = (squares.sum() - squares.diagonal().sum()) / (5 * 4)
    loss = uniformity(features)
    assert without.item() == pytest.approx((5 * loss.item() - 1) / 4)
    (expected,) = torch.autograd.grad(without, features, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(gradient * 5 / 4, expected)


def test_zero_norm_features_have_a_defined_value_and_no_gradient() -> None:
    features = torch.eye(4)[[0, 0, 1]]
    features = torch.cat([features, torch.zeros(1, 4)]).requires_grad_()
    loss = uniformity(features)
    assert loss.item() == pytest.approx((4 + 1) / 16)
    loss.backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert torch.equal(features.grad[3], torch.zeros(4))
    assert uniformity(torch.zeros(3, 4)).item() == 0


def test_one_image() -> None:
    features = torch.randn(1, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    loss = uniformity(features)
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert features.grad is not None
    assert features.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_do_not_overflow(dtype: torch.dtype) -> None:
    """Squares of these overflow float16; the loss is that of the same numbers in float64."""
    generator = torch.Generator().manual_seed(5)
    features = (torch.randn(6, 32, generator=generator) * 1e4).to(dtype).requires_grad_()
    assert dtype != torch.float16 or torch.isinf(features @ features.T).any()
    loss = uniformity(features)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(brute_force(features.detach()), abs=1e-6)
    loss.backward()
    assert features.grad is not None
    assert features.grad.dtype == dtype
    assert torch.isfinite(features.grad).all()


def test_autocast_does_not_lower_the_precision() -> None:
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (features @ features.T).dtype == torch.bfloat16  # autocast is at work
        loss = uniformity(features)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, uniformity(features))


def test_descending_the_gradient_spreads_collapsed_features() -> None:
    generator = torch.Generator().manual_seed(7)
    features = torch.ones(4, 16) + 0.1 * torch.randn(4, 16, generator=generator)
    features.requires_grad_()
    optimizer = torch.optim.Adam([features], lr=0.05)
    assert uniformity(features).item() > 0.9
    for _ in range(300):
        optimizer.zero_grad()
        uniformity(features).backward()
        optimizer.step()
    assert uniformity(features).item() == pytest.approx(1 / 4, abs=1e-3)


@pytest.mark.parametrize("token", ["cls", "mean"])
def test_module_is_weight_times_the_function(token: str) -> None:
    tokens = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(8))
    expected = uniformity(tokens[:, 0] if token == "cls" else tokens[:, 1:].mean(dim=1))
    loss_fn = UniformityLoss(weight=0.01, token=token)
    assert torch.equal(loss_fn(tokens), 0.01 * expected)
    assert not list(loss_fn.parameters())
    assert not loss_fn.state_dict()
    assert "weight=0.01" in repr(loss_fn)


def test_weight_zero_gives_zero_gradient() -> None:
    tokens = torch.randn(4, 6, 8, requires_grad=True)
    loss = UniformityLoss(weight=0)(tokens)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_double_norm_is_the_final_norm_of_the_class_token() -> None:
    tokens = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(9))
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    loss = UniformityLoss(weight=1.0, double_norm=True)(tokens, final_norm=norm)
    once = UniformityLoss(weight=1.0)(tokens)
    assert (loss - once).abs() > 1e-3
    centred = tokens[:, 0] - tokens[:, 0].mean(dim=1, keepdim=True)
    scaled = centred * norm.weight / (tokens[:, 0].var(dim=1, correction=0)[:, None] + 1e-5).sqrt()
    assert loss.item() == pytest.approx(brute_force(scaled.detach()), abs=1e-6)


def test_gather_without_a_process_group_is_the_local_loss() -> None:
    features = torch.randn(4, 8)
    assert torch.equal(uniformity(features, gather_distributed=True), uniformity(features))


@pytest.mark.parametrize("weight", [-1e-3, math.nan, math.inf])
def test_bad_weight_values(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be finite and at least 0"):
        UniformityLoss(weight=weight)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="weight must be a number, got '1'"):
        UniformityLoss(weight="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token must be one of.*got 'max'"):
        UniformityLoss(token="max")
    with pytest.raises(TypeError, match="positional"):
        UniformityLoss(0.1, "mean")  # type: ignore[misc]
    with pytest.raises(ValueError, match="official_gather=True needs gather_distributed=True"):
        UniformityLoss(official_gather=True, gather_distributed=False)
    with pytest.raises(ValueError, match="double_norm=True needs token='cls', got 'mean'"):
        UniformityLoss(double_norm=True, token="mean")
    with pytest.raises(ValueError, match="double_norm=True needs an encoder with a final norm"):
        UniformityLoss(double_norm=True)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"features must have shape.*got \(0, 3\)"):
        uniformity(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"features must have shape.*got \(3,\)"):
        uniformity(torch.zeros(3))
    with pytest.raises(TypeError, match="floating, got torch.int64"):
        uniformity(torch.zeros(3, 2, dtype=torch.long))
