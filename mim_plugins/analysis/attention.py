"""What does the encoder's last layer look at? Attention maps (Kong et al., section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .._tensor import check_shape
from ._figure import picture_grid


@torch.no_grad()
def last_layer_attention(encoder: nn.Module, encode: Callable[[], Any]) -> Tensor:
    """Self-attention of an encoder's last layer, averaged over its heads.

    Works on the attention modules of mmpretrain's ViT and Swin, timm's ViT and torchvision's
    ViT, whose attention is fused and never leaves the module: it is computed again from the
    module's input and weights.

    Args:
        encoder: The model, or a part of it, whose last attention module is meant.
        encode: Called without arguments; runs the encoder once, on whole images. Put the
            model in evaluation mode first.

    Returns:
        ``(B, L, L)`` float32; row i holds the weights with which token i looks at all tokens,
        and sums to 1. For Swin, B counts the windows of all images, and L their patches.

    Raises:
        TypeError: If the encoder has no attention module of these kinds.
        RuntimeError: If ``encode`` does not run it.
    """
    modules = [module for module in encoder.modules() if _kind(module) is not None]
    if not modules:
        raise TypeError(
            f"{type(encoder).__name__} has no attention module of mmpretrain, timm or torchvision"
        )
    # Order of definition and order of execution may differ: the last one that runs counts.
    seen: dict[str, Any] = {}

    def see_input(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["attention"] = (module, args[0] if args else kwargs.get("x", kwargs.get("query")))

    def see_softmax(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen["softmax"] = output

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(see_input, with_kwargs=True))
            if _kind(module) == "window":
                softmax: Any = module.softmax
                hooks.enter_context(softmax.register_forward_hook(see_softmax))
        encode()
    if "attention" not in seen:
        raise RuntimeError("encode() ran no attention module of the encoder")
    module, tokens = seen["attention"]
    kind = _kind(module)
    if kind == "window":
        weights = seen["softmax"]
    elif kind == "torch":
        weights = module(tokens, tokens, tokens, average_attn_weights=False)[1]
    else:
        weights = _from_qkv(module, tokens)
    return weights.float().mean(dim=1)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.MultiheadAttention):
        return "torch"
    if not isinstance(getattr(module, "qkv", None), nn.Linear):
        return None
    if isinstance(getattr(module, "softmax", None), nn.Softmax):
        return "window"
    # Biases by relative position enter before the softmax, out of reach.
    biased = getattr(module, "relative_position_bias_table", None) is not None
    return None if biased or not hasattr(module, "num_heads") else "qkv"


def _from_qkv(module: Any, tokens: Tensor) -> Tensor:
    """``(B, heads, L, L)`` softmax of scaled products, as ViT defines them."""
    batch, length, _ = tokens.shape
    qkv = module.qkv(tokens).reshape(batch, length, 3, module.num_heads, -1)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    scale = getattr(module, "scale", query.shape[-1] ** -0.5)
    return (query.float() @ key.float().transpose(-2, -1) * scale).softmax(dim=-1)


def attention_map(
    attention: Tensor,
    grid: tuple[int, int],
    token: tuple[int, int] | None = None,
    prefix_tokens: int = 1,
) -> Tensor:
    """How strongly one token looks at every patch (figures 6 and 7).

    Args:
        attention: ``(B, L, L)`` of :func:`last_layer_attention`.
        grid: Rows and columns of patches; L is their number and ``prefix_tokens``.
        token: Row and column of the patch that looks. Default: [CLS], the first token.
        prefix_tokens: Tokens before the patches. Default: 1, [CLS].

    Returns:
        ``(B, rows, columns)``; what the token gives to prefix tokens is left out.

    Raises:
        ValueError: If shapes do not fit, the patch lies outside, or there is no [CLS].
    """
    rows, cols = grid
    length = rows * cols + prefix_tokens
    check_shape("attention", attention, "B", length, length)
    if token is None:
        if not prefix_tokens:
            raise ValueError("token must be given: the encoder has no [CLS]")
        query = 0
    else:
        row, col = token
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(f"token must lie in the grid {rows} x {cols}, got {token}")
        query = prefix_tokens + row * cols + col
    return attention[:, query, prefix_tokens:].unflatten(1, grid)


def plot_attention(
    images: Tensor,
    maps: dict[str, Tensor],
    token: tuple[int, int] | None = None,
) -> Any:
    """One row per image: the image, and each named set of maps over it.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        maps: Names and ``(B, rows, columns)``; each map is scaled to its own maximum.
        token: Row and column of the patch that looks, marked by a red square. Default: [CLS].

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no maps, or not one per image.
    """
    if not maps or any(len(each) != len(images) for each in maps.values()):
        raise ValueError(f"maps must have {len(images)} maps under every name, got {list(maps)}")
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    figure, axes = picture_grid([("image", images), *((name, grey) for name in maps)])
    from matplotlib.patches import Rectangle

    height, width = images.shape[2:]
    for column, each in zip(axes.T[1:], maps.values(), strict=True):
        for axis, values in zip(column, each.float().cpu().numpy(), strict=True):
            axis.imshow(values, cmap="inferno", alpha=0.7, extent=(0, width, height, 0), vmin=0.0)
            if token is not None:
                side = (width / values.shape[1], height / values.shape[0])
                corner = (token[1] * side[0], token[0] * side[1])
                axis.add_patch(Rectangle(corner, *side, fill=False, color="red", linewidth=1.5))
            axis.set(xlim=(0, width), ylim=(height, 0))
    return figure
