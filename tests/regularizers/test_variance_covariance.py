"""The variance and covariance terms beside lightly's VICReg, and numpy's covariance."""

import math

import numpy as np
import pytest
import torch

from mim_plugins.regularizers import Step, VarianceCovarianceLoss

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).double()
X = 0.4 * X @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double() + 3.0


def test_they_are_vicregs_of_lightly() -> None:
    """Its terms on two views that are the same: the variance counts once, the covariance twice."""
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed").VICRegLoss
    x = X.clone().requires_grad_()
    losses = VarianceCovarianceLoss(1.0, covariance_weight=1.0)(Step(x))
    for name, weights in (("loss_variance", (1, 0)), ("loss_covariance", (0, 0.5))):
        expected = loss(lambda_param=0.0, mu_param=weights[0], nu_param=weights[1])(x, x)
        torch.testing.assert_close(losses[name], expected)
        found = torch.autograd.grad(losses[name], x, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, x))
    assert losses["loss_variance"] > 0.01


def test_they_are_the_formulas() -> None:
    covariance = np.cov(X.numpy().T)
    hinge = np.maximum(0, 1 - np.sqrt(covariance.diagonal() + 1e-4)).mean()
    others = ((covariance - np.diag(covariance.diagonal())) ** 2).sum() / 6
    term = VarianceCovarianceLoss(0.5, variance_weight=2.0, covariance_weight=0.1)
    losses = term(Step(X))
    assert losses["loss_variance"].item() == pytest.approx(0.5 * 2.0 * hinge)
    assert losses["loss_covariance"].item() == pytest.approx(0.5 * 0.1 * others)
    assert term(X).item() == pytest.approx(0.5 * (2.0 * hinge + 0.1 * others))


@pytest.mark.parametrize("features", [torch.ones(4, 3), torch.ones(1, 3)])
def test_no_variance_is_finite(features: torch.Tensor) -> None:
    features.requires_grad_()
    loss = VarianceCovarianceLoss(1.0)(features)
    loss.backward()
    assert loss.item() == pytest.approx(0.99)
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="variance_weight must be finite and at least 0, got nan"):
        VarianceCovarianceLoss(variance_weight=math.nan)
    with pytest.raises(TypeError, match="covariance_weight must be a number, got '1'"):
        VarianceCovarianceLoss(covariance_weight="1")  # type: ignore[arg-type]
