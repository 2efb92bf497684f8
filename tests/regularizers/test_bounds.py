"""InfoNCE and CLUB: against sums written out, and against known mutual information."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from mim_plugins.regularizers import club, infonce
from mim_plugins.regularizers.bounds import gaussian_log_likelihood


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def infonce_by_hand(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> float:
    """Eq. 4 of van den Oord et al., row by row; r queries per key."""
    each, total = len(queries) // len(keys), 0.0
    for row, query in enumerate(queries):
        scores = [
            math.exp((query @ key / query.norm() / key.norm()).item() / temperature) for key in keys
        ]
        total += math.log(scores[row // each] / (sum(scores) / len(keys)))
    return total / len(queries)


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_infonce_equals_the_formula(each: int, temperature: float) -> None:
    queries, keys = normal(5 * each, 4), normal(5, 4, seed=1)
    found = infonce(queries, keys, temperature=temperature).item()
    assert found == pytest.approx(infonce_by_hand(queries, keys, temperature), abs=1e-10)


def test_leading_dimensions_broadcast() -> None:
    queries, keys = normal(3, 1, 8, 4), normal(1, 2, 4, 4, seed=1)
    bounds = infonce(queries, keys)
    assert bounds.shape == (3, 2)
    for m in range(3):
        for n in range(2):
            expected = infonce_by_hand(queries[m, 0], keys[0, n], 0.1)
            assert bounds[m, n].item() == pytest.approx(expected, abs=1e-10)


def club_by_hand(z: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> float:
    """Eq. 8 of Cheng et al. with every pair of an input and another image's latent."""
    groups, images = z.shape[:2]

    def log_q(g: int, i: int, latent: torch.Tensor) -> float:
        scale = (0.5 * log_variance[g, i]).exp()
        return torch.distributions.Normal(mean[g, i], scale).log_prob(latent).sum().item()

    total = 0.0
    for g in range(groups):
        for i in range(images):
            others = [log_q(g, i, z[h, j]) for h in range(groups) for j in range(images) if j != i]
            total += log_q(g, i, z[g, i]) - sum(others) / len(others)
    return total / (groups * images)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_club_equals_the_formula_over_all_pairs(groups: int, shift: float) -> None:
    z, mean, log_variance = (normal(groups, 5, 4, seed=seed) for seed in range(3))
    expected = club_by_hand(z, mean, log_variance)
    assert club(z + shift, mean + shift, log_variance).item() == pytest.approx(expected, abs=1e-7)


def test_club_keeps_its_digits_in_float32() -> None:
    z, mean, log_variance = (normal(2, 50, 8, seed=seed) for seed in range(3))
    expected = club(z, mean, log_variance).item()
    far = club((z + 100).float(), (mean + 100).float(), log_variance.float())
    assert far.dtype == torch.float32
    assert far.item() == pytest.approx(expected, rel=1e-3)


def test_gradients_are_the_numerical_ones() -> None:
    inputs = [normal(2, 4, 3, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(club, inputs)
    assert torch.autograd.gradcheck(infonce, [normal(4, 3).requires_grad_()] * 2)
    queries, keys = normal(4, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(infonce, [queries, keys])


def test_log_likelihood_is_torchs() -> None:
    z, mean, log_variance = (normal(5, 4, seed=seed) for seed in range(3))
    expected = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(dim=1)
    torch.testing.assert_close(gaussian_log_likelihood(z, mean, log_variance), expected)


def test_one_image_bears_no_information() -> None:
    z = normal(3, 1, 4).requires_grad_()
    value = club(z, normal(3, 1, 4, seed=1), normal(3, 1, 4, seed=2)) + infonce(z[0], z[1]).sum()
    value.backward()
    assert value.item() == 0
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-12


def test_zero_vectors_are_finite() -> None:
    queries = torch.zeros(4, 3, requires_grad=True)
    value = infonce(queries, torch.randn(4, 3))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)  # all keys equally likely
    assert torch.isfinite(queries.grad).all()


# -- correlated Gaussians ------------------------------------------------------------------

DIM = 4


def pairs(rho: float, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x, z of ``DIM`` independent pairs of correlation rho."""
    x, noise = normal(number, DIM, seed=seed), normal(number, DIM, seed=seed + 1)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def truth(rho: float) -> float:
    return -0.5 * DIM * math.log(1 - rho**2)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_club_with_the_true_conditional_has_its_known_expectation(rho: float) -> None:
    """d rho^2 / (1 - rho^2), which is above the information -d/2 log(1 - rho^2)."""
    x, z = pairs(rho, 40000, seed=0)
    log_variance = torch.full_like(z, math.log(1 - rho**2))
    found = club(z[None], rho * x[None], log_variance[None]).item()
    expected = DIM * rho**2 / (1 - rho**2)
    assert expected >= truth(rho)
    assert found == pytest.approx(expected, rel=0.03, abs=0.02)


def estimates(rho: float) -> tuple[float, float]:
    """InfoNCE with a trained critic and CLUB with a trained q, both on fresh samples."""
    torch.manual_seed(0)
    critics = nn.ModuleList(
        nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(2)
    )
    q = nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Linear(64, 2 * DIM))
    optimizer = torch.optim.Adam([*critics.parameters(), *q.parameters()], lr=3e-3)
    for step in range(400):
        x, z = (t.float() for t in pairs(rho, 256, seed=10 + 2 * step))
        lower = infonce(critics[0](z), critics[1](x))
        mean, log_variance = q(x).chunk(2, dim=1)
        loss = -lower - gaussian_log_likelihood(z, mean, log_variance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lower_values, upper_values = [], []
    with torch.no_grad():
        for step in range(20):
            x, z = (t.float() for t in pairs(rho, 256, seed=10000 + 2 * step))
            lower_values.append(infonce(critics[0](z), critics[1](x)).item())
            upper_values.append(club(z[None], *(t[None] for t in q(x).chunk(2, dim=1))).item())
    return sum(lower_values) / 20, sum(upper_values) / 20


def test_trained_estimators_bracket_the_truth_and_move_with_it() -> None:
    rhos = (0.0, 0.4, 0.7, 0.9)
    lower, upper = zip(*map(estimates, rhos), strict=True)
    for rho, low, high in zip(rhos, lower, upper, strict=True):
        assert low <= truth(rho) + 0.05
        assert high >= truth(rho) - 0.05
    for values in (lower, upper):
        assert all(b > a + 0.1 for a, b in pairwise(values))
    # Not vacuous: little where there is nothing, and most of what there is.
    assert abs(lower[0]) < 0.1
    assert abs(upper[0]) < 0.1
    assert lower[2] > 0.7 * truth(0.7)


def test_infonce_cannot_exceed_the_logarithm_of_the_number_of_keys() -> None:
    x, _ = pairs(0.0, 64, seed=0)
    found = infonce(x, x, temperature=1e-3).item()
    assert math.log(64) - 1e-3 < found <= math.log(64)  # of an infinite amount


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        infonce(torch.eye(2), torch.eye(2), temperature=temperature)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"queries and keys must have shapes.*got \(3,\)"):
        infonce(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="queries must have a multiple of the keys' rows"):
        infonce(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"latents must have shape \(G >= 1, n >= 1, D >= 1\)"):
        club(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"mean must have shape \(1, 3, 2\), got \(1, 3, 1\)"):
        club(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1), torch.zeros(1, 3, 2))
