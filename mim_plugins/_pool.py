"""One feature per image of what an encoder returns."""

from __future__ import annotations

from torch import Tensor

TOKENS = ("auto", "cls", "mean")


def pool(output: Tensor, token: str = "auto", prefix_tokens: int = 1) -> Tensor:
    """One feature per image of what an encoder returns.

    Args:
        output: ``(B, D)``, taken as it is; ``(B, D, H, W)``, averaged over positions; or
            ``(B, L, D)`` tokens.
        token: Of tokens take the first (``"cls"``), the mean of the patches (``"mean"``), or
            the first if there is a class token and else the mean (``"auto"``).
        prefix_tokens: Number of tokens that are no patches. Default: 1, the class token.

    Returns:
        ``(B, D)``.

    Raises:
        ValueError: If ``output`` has another shape, or there is no class token to take.
    """
    if output.ndim == 2:
        return output
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    if output.ndim != 3:
        raise ValueError(
            f"features must have shape (B, D), (B, L, D) or (B, D, H, W), got {tuple(output.shape)}"
        )
    if token == "mean" or (token == "auto" and not prefix_tokens):
        return output[:, prefix_tokens:].mean(dim=1)
    if not prefix_tokens:
        raise ValueError("token must be 'mean' or 'auto': the encoder has no class token")
    return output[:, 0]
