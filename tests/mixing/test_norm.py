"""Batch norm over parts of a batch against batch norm of each part."""

import pytest
import torch
from torch import nn

from mim_plugins.mixing import SplitBatchNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"affine": False},
        {"momentum": None},
        {"track_running_stats": False},
        {"track_running_stats": False, "momentum": None},
    ],
)
def test_each_part_has_its_own_statistics(layout: torch.memory_format, arguments: dict) -> None:
    torch.manual_seed(0)
    split = SplitBatchNorm(3, num_splits=2, **arguments).double()
    if split.affine:
        nn.init.uniform_(split.weight)
        nn.init.uniform_(split.bias)
    parts = [nn.BatchNorm2d(3, **arguments).double() for _ in range(2)]
    for part in parts:
        part.load_state_dict(split.state_dict(), strict=True)
    for _ in range(3):
        x = torch.randn(6, 3, 4, 5, dtype=torch.float64)
        mine = x.clone(memory_format=layout).requires_grad_()
        theirs = x.clone().requires_grad_()
        out = split(mine)
        expected = torch.stack([part(theirs[i::2]) for i, part in enumerate(parts)], 1).flatten(
            0, 1
        )
        torch.testing.assert_close(out, expected)
        (out**3).sum().backward()
        (expected**3).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
    if split.track_running_stats:
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(part, name) for part in parts]).mean(dim=0)
            torch.testing.assert_close(getattr(split, name), mean)
        assert split.num_batches_tracked == 3
        plain = nn.BatchNorm2d(3, **arguments).double()
        plain.load_state_dict(split.state_dict())
        assert torch.equal(split.eval()(x), plain.eval()(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_splits must be at least 1, got 0"):
        SplitBatchNorm(3, 0)
    with pytest.raises(ValueError, match="a batch must be a multiple of num_splits=4, got 6"):
        SplitBatchNorm(3, 4)(torch.rand(6, 3, 2, 2))
    assert "num_splits=8" in repr(SplitBatchNorm(3))
