"""Shapes by names and numbers; devices that are not there."""

import pytest
import torch

from mim_plugins._tensor import check_device, check_shape


def test_shapes_that_fit() -> None:
    check_shape("images", torch.zeros(2, 3, 4, 5), "B", "C", 4, 5)
    check_shape("L", torch.zeros(2, 3, 3), "B", "N", "N")
    check_shape("features", torch.zeros(2, 0), "n >= 2", "D")
    check_shape("loss", torch.zeros(()))


@pytest.mark.parametrize(
    ("shape", "lengths", "words"),
    [
        ((2, 3), ("B", "C", "H", "W"), "(B, C, H, W), got (2, 3)"),
        ((2, 3, 4), ("B", "N", "N"), "(B, N, N), got (2, 3, 4)"),
        ((1, 3), ("n >= 2", "D"), "(n >= 2, D), got (1, 3)"),
        ((3,), (2,), "(2,), got (3,)"),
        ((3, 1), (3,), "(3,), got (3, 1)"),
        ((2, 2), ("n", 3), "(n, 3), got (2, 2)"),
    ],
)
def test_shapes_that_do_not(shape: tuple, lengths: tuple, words: str) -> None:
    with pytest.raises(ValueError) as error:
        check_shape("x", torch.zeros(shape), *lengths)
    assert str(error.value) == f"x must have shape {words}"


def test_other_things() -> None:
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        check_shape("x", [1, 2], "n")
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        check_device("cuda:99")
