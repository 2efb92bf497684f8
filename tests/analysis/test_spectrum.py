import math

import numpy as np
import pytest
import torch

from mim_plugins.analysis import effective_rank, singular_spectrum


def entropy_rank(values: list[float]) -> float:
    total = sum(values)
    return math.exp(-sum(v / total * math.log(v / total) for v in values if v > 0))


def test_equal_singular_values_give_full_rank() -> None:
    for n in (2, 5, 100):
        assert effective_rank(torch.eye(n)) == pytest.approx(n)
    # Rows of an orthogonal matrix repeated: D equal singular values.
    q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    assert effective_rank(q.repeat(4, 1)) == pytest.approx(6, abs=1e-5)


def test_a_line_gives_one() -> None:
    line = torch.tensor([[1.0], [-2.0], [3.0]]) * torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert singular_spectrum(line).tolist() == pytest.approx([1, 0, 0], abs=1e-7)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (3, 1), (7, 2)])
def test_two_orthogonal_groups(a: int, b: int) -> None:
    """a and b images in two orthogonal directions: singular values sqrt(a) and sqrt(b)."""
    features = torch.eye(5)[[0] * a + [3] * b]
    share = math.sqrt(a) / (math.sqrt(a) + math.sqrt(b))
    assert singular_spectrum(features)[:2].tolist() == pytest.approx([share, 1 - share])
    expected = entropy_rank([math.sqrt(a), math.sqrt(b)])
    assert effective_rank(features) == pytest.approx(expected)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9])
def test_two_features_at_an_angle(cosine: float) -> None:
    """The Gram matrix [[1, c], [c, 1]] has eigenvalues 1 + c and 1 - c."""
    features = torch.tensor([[5.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
    expected = entropy_rank([math.sqrt(1 + cosine), math.sqrt(1 - cosine)])
    assert effective_rank(features) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(100, 32), (20, 64)])
def test_against_eigenvalues_in_numpy(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape) + 0.5
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    gram = unit @ unit.T if shape[0] < shape[1] else unit.T @ unit
    values = np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(0))
    spectrum = singular_spectrum(torch.from_numpy(x))
    assert spectrum.dtype == torch.float64
    np.testing.assert_allclose(spectrum.numpy(), values / values.sum(), atol=1e-8)
    assert effective_rank(torch.from_numpy(x)) == pytest.approx(entropy_rank(values.tolist()))


def test_scale_and_rotation_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    scale = torch.rand(10, 1, generator=generator, dtype=torch.float64) + 0.1
    assert effective_rank(scale * x @ q) == pytest.approx(effective_rank(x), rel=1e-9)


def test_zero_features() -> None:
    assert effective_rank(torch.zeros(4, 3)) == 1
    some = torch.cat([torch.eye(3), torch.zeros(2, 3)])
    assert effective_rank(some) == pytest.approx(3)


def test_half_precision_and_gradients() -> None:
    features = (torch.eye(4) * 6e4).half().requires_grad_()
    assert not singular_spectrum(features).requires_grad
    assert effective_rank(features) == pytest.approx(4)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 3, 4)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features must have shape"):
        effective_rank(torch.zeros(shape))
