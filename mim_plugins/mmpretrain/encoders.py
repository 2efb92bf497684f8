"""What upstream's encoders do not say of themselves."""

from __future__ import annotations

from typing import Any


def num_prefix_tokens(backbone: Any) -> int:
    """Tokens before the patches: 0 for HiViT, Swin and a ViT without class token, else 1."""
    if getattr(backbone, "cls_token", None) is None:
        return 0
    return getattr(backbone, "num_extra_tokens", 1)
