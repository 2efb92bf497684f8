import pytest
import torch

from mim_plugins._pool import pool


def test_a_feature_of_everything_an_encoder_may_return() -> None:
    tokens = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(pool(tokens), tokens[:, 0])
    assert torch.equal(pool(tokens, "cls", 2), tokens[:, 0])
    assert torch.equal(pool(tokens, "mean"), tokens[:, 1:].mean(1))
    assert torch.equal(pool(tokens, "mean", 2), tokens[:, 2])
    assert torch.equal(pool(tokens, "auto", 0), tokens.mean(1))
    assert torch.equal(pool(tokens.view(2, 3, 2, 2)), tokens.mean(2))
    assert torch.equal(pool(tokens.mean(1), "cls", 0), tokens.mean(1))


def test_removed_patches_are_left_out() -> None:
    tokens = torch.arange(2 * 4 * 3, dtype=torch.float32).view(2, 4, 3)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    tokens[0, 1] = torch.inf  # a removed patch may be anything
    feature = pool(tokens, "mean", mask=mask)
    assert torch.equal(feature[0], tokens[0, 2:].mean(dim=0))
    assert torch.equal(feature[1], torch.zeros(3))  # nothing visible
    tokens[0, 1] = 0.0
    grid = torch.tensor([[[0, 1], [1, 0]], [[1, 0], [0, 0]]])
    feature = pool(tokens, "mean", 0, mask=grid)
    assert torch.equal(feature[0], (tokens[0, 0] + tokens[0, 3]) / 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_float32_under_autocast_and_for_half_precision(
    dtype: torch.dtype, masked: bool
) -> None:
    """A channel of 900 in 144 tokens sums to more than float16 holds."""
    tokens = torch.randn(4, 1 + 144, 32, generator=torch.Generator().manual_seed(0))
    tokens[..., 3] = 900.0
    mask = None
    if masked:
        mask = torch.zeros(4, 144)
        mask[:, :20] = 1
    expected = tokens[:, 21 if masked else 1 :].double().mean(dim=1).float()
    with torch.autocast("cpu", dtype):
        feature = pool(tokens, "mean", mask=mask)
    assert feature.dtype == torch.float32
    torch.testing.assert_close(feature, expected)
    low = pool(tokens.to(dtype), "mean", mask=mask)
    assert low.dtype == torch.float32
    expected = tokens.to(dtype)[:, 21 if masked else 1 :].double().mean(dim=1).float()
    torch.testing.assert_close(low, expected)
    assert pool(tokens.double(), "mean").dtype == torch.float64


def test_bad_input() -> None:
    tokens = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match="token must be one of.*got 'max'"):
        pool(tokens, "max")
    with pytest.raises(ValueError, match=r"needs an encoder with \[CLS\].*use token='mean'"):
        pool(tokens, "cls", 0)
    with pytest.raises(ValueError, match="num_prefix_tokens must be at least 0, got -1"):
        pool(tokens, "mean", -1)
    with pytest.raises(ValueError, match=r"features must have shape.*got \(2,\)"):
        pool(torch.zeros(2))
    with pytest.raises(ValueError, match=r"features must have shape.*got \(2, 1, 3\)"):
        pool(tokens[:, :1], "mean")
    with pytest.raises(ValueError, match="mask has shape.*there are 3 patch tokens"):
        pool(tokens, "mean", mask=torch.zeros(2, 9))
