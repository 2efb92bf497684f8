"""The information terms of MI-MAE; derivation and choices in docs/mi-mae.md."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._check import check_choice, check_int, check_positive, check_weight
from ..masking.kernels import unit_features
from .bounds import club, gaussian_log_likelihood, infonce
from .gather import check_gather_distributed
from .uniformity import global_feature

TOKENS = ("mean", "cls", "each")
CONDITIONS = ("visible", "image")

_SIDE = 4  # of a patch, averaged down, as the small networks see it
_FREQUENCIES = 4
_LOG_VARIANCE = 5.0  # bound of log q's variance: keeps the estimate of a deterministic z finite


class PatchSetNetwork(nn.Module):
    """A vector from the set of an image's visible, or removed, patches.

    Every patch is averaged down to 4 x 4 pixels and goes through an MLP, the selected ones'
    mean through another (Zaheer et al., "Deep Sets", 2017). Patches are embedded once for
    all masks of an image, and any grid is accepted.

    Args:
        out_dim: D, of the result.
        hidden_dim: Width of both MLPs. Default: 256.
        in_channels: C of the images. Default: 3.
        positions: Let the network see where a patch is. Default: True.
    """

    def __init__(
        self, out_dim: int, hidden_dim: int = 256, in_channels: int = 3, positions: bool = True
    ) -> None:
        super().__init__()
        self.positions = positions
        width = in_channels * _SIDE**2 + (4 * _FREQUENCIES if positions else 0)
        self.patch = _mlp(width, hidden_dim, hidden_dim)
        self.joint = _mlp(hidden_dim, hidden_dim, out_dim)

    def forward(self, images: Tensor, selected: Tensor, grid: tuple[int, int]) -> Tensor:
        """Of ``images (B, C, H, W)`` and ``selected (M * B, N)``: ``(M * B, D)`` float32.

        ``selected`` is 1 for the patches to look at, row by row of ``grid``; ``(B, N)``
        times M masks in the order of ``images.repeat(M, 1, 1, 1)``.
        """
        batch, (rows, cols) = len(images), grid
        pooled = F.adaptive_avg_pool2d(images.float(), (rows * _SIDE, cols * _SIDE))
        patches = unit_features(pooled, grid, "pixels")
        if self.positions:
            waves = _positions(rows, cols, images.device)
            patches = torch.cat([patches, waves.expand(batch, -1, -1)], dim=2)
        embedded = _apply(self.patch, patches)
        share = selected.view(-1, batch, rows * cols).to(embedded.dtype)
        share = share / share.sum(dim=2, keepdim=True).clamp(min=1)
        return _apply(self.joint, torch.einsum("mbn,bnh->mbh", share, embedded).flatten(0, 1))


class MutualInformationLoss(nn.Module):
    """The terms that MI-MAE adds to a reconstruction loss, each with its own weight.

    Z is a latent of the encoder under one of M masks of an image.

    ``cross``
        Maximises I(Z; Z') between the latents of an image under different masks: InfoNCE,
        all ordered pairs of masks. If the masks' visible sets are disjoint, what the other
        latent has seen is part of what this one's decoder must put out, so this is a lower
        bound on the information between latent and output.
    ``output``
        Maximises I(Z; Y) between the latent and the output, the removed patches, directly:
        InfoNCE with a small network that sees the removed patches of an image as a set.
        Off by default.
    ``input``
        Minimises I(Z; X) between the latent and the input: CLUB with a Gaussian variational
        network q(z | x). An estimate below 0 counts as 0. Its gradient reaches the latents
        only.
    ``variational``
        The negative log-likelihood of q on detached pairs, per dimension. Its gradient
        reaches the variational network only.

    A term of weight 0 is not computed, and has no parameters. All is computed in float32
    outside autocast, and the information is in nats. A global batch of one image bears no
    information: the first three terms are then 0.

    Args:
        dim: D, of the encoder's tokens.
        cross_weight: Of ``cross``. Default: 0.1.
        output_weight: Of ``output``. Default: 0.
        input_weight: Of ``input``, per nat. Default: 0.001.
        variational_weight: Of ``variational``; positive if ``input_weight`` is. Default: 1.
        token: Z is ``"mean"``, the mean of the visible patch tokens; ``"cls"``, the first
            token; or ``"each"``, a visible patch token drawn at random, in the mean over all
            (not for encoders that see the removed patches too). Default: ``"mean"``.
        num_prefix_tokens: Tokens before the patch tokens. Default: 1, a [CLS].
        temperature: Of the InfoNCE critics. Default: 0.1.
        projection_dim: Compare latents after an MLP with this output dimension; None: as
            they are. Default: 256.
        hidden_dim: Width of all MLPs. Default: 512.
        condition: What q sees: the ``"visible"`` patches, or the whole ``"image"``.
            Default: ``"visible"``, what the encoder sees.
        in_channels: C of the images. Default: 3.
        gather_distributed: Take the other images from all ranks, with gradient; the ranks'
            batches must be equal in size. Default: False.

    Raises:
        TypeError: If a weight is no number.
        ValueError: If an argument is out of range.

    Example:
        >>> loss_fn = MutualInformationLoss(dim=192)
        >>> images = torch.rand(8, 3, 224, 224)
        >>> from mim_plugins.masking import ComplementaryMasking
        >>> masks = ComplementaryMasking(num_masks=4)(images)
        >>> latent = torch.randn(4 * 8, 1 + 49, 192, requires_grad=True)  # of a MAE encoder
        >>> loss_fn(latent, images=images, mask=masks.mask, num_masks=4).backward()
    """

    def __init__(
        self,
        dim: int,
        cross_weight: float = 0.1,
        output_weight: float = 0.0,
        input_weight: float = 0.001,
        variational_weight: float = 1.0,
        token: str = "mean",
        num_prefix_tokens: int = 1,
        temperature: float = 0.1,
        projection_dim: int | None = 256,
        hidden_dim: int = 512,
        condition: str = "visible",
        in_channels: int = 3,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.cross_weight = check_weight("cross_weight", cross_weight)
        self.output_weight = check_weight("output_weight", output_weight)
        self.input_weight = check_weight("input_weight", input_weight)
        self.variational_weight = check_weight("variational_weight", variational_weight)
        if input_weight and not variational_weight:
            raise ValueError(
                "variational_weight must be positive if input_weight is: an untrained q bounds "
                f"nothing, got {variational_weight} and {input_weight}"
            )
        check_choice("token", token, TOKENS)
        check_choice("condition", condition, CONDITIONS)
        if check_int("num_prefix_tokens", num_prefix_tokens, 0) < (token == "cls"):
            raise ValueError(
                f"num_prefix_tokens must be at least {int(token == 'cls')} with token={token!r}, "
                f"got {num_prefix_tokens}"
            )
        for name, size in (
            ("dim", dim),
            ("hidden_dim", hidden_dim),
            ("in_channels", in_channels),
            ("projection_dim", 1 if projection_dim is None else projection_dim),
        ):
            check_int(name, size)
        self.dim = dim
        self.in_channels = in_channels
        self.token = token
        self.num_prefix_tokens = num_prefix_tokens
        self.temperature = check_positive("temperature", temperature)
        self.condition = condition
        self.gather_distributed = check_gather_distributed(gather_distributed)

        self.projection: nn.Module = nn.Identity()
        if projection_dim is not None and (cross_weight or output_weight):
            self.projection = _mlp(dim, hidden_dim, projection_dim)
        if output_weight:
            # Without positions: they would give away the mask instead of the image.
            self.target = PatchSetNetwork(projection_dim or dim, hidden_dim, in_channels, False)
        if input_weight:
            self.variational = PatchSetNetwork(2 * dim, hidden_dim, in_channels)

    @property
    def weight(self) -> float:
        """0 if there is nothing to compute."""
        return self.cross_weight + self.output_weight + self.input_weight

    def forward(
        self,
        tokens: Tensor,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        num_masks: int = 1,
        separate: bool = False,
        **step: object,
    ) -> Tensor | dict[str, Tensor]:
        """The sum of the weighted terms, a scalar, or with ``separate`` what :meth:`terms` says.

        The other arguments are those of :meth:`terms`.
        """
        terms = self.terms(tokens, images=images, mask=mask, num_masks=num_masks, **step)
        if separate:
            return terms
        parts = [part for name, part in terms.items() if not name.startswith("value_")]
        return torch.stack(parts).sum() if parts else tokens.sum() * 0.0

    def terms(
        self,
        tokens: Tensor,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        num_masks: int = 1,
        **step: object,
    ) -> dict[str, Tensor]:
        """The weighted terms by name, and as ``value_<name>`` the estimates in nats.

        Args:
            tokens: ``(M * B, P + K, D)``, mask by mask: row ``m * B + b`` is image b; or
                ``(M * B, D)``, one latent per image.
            images: ``(B, C, H, W)``, or ``(M * B, C, H, W)`` with the images repeated; for
                ``output`` and ``input``.
            mask: ``(M * B, N)`` or ``(M * B, rows, cols)``, True or 1 = removed; for
                ``output``, ``input`` and for encoders that see the removed patches too.
            num_masks: M; at least 2 for ``cross``. Default: 1.
            **step: Whatever else an adapter passes to every regularizer. Not used.

        Returns:
            Scalars, float32. ``value_...`` are detached.

        Raises:
            ValueError: If what a term needs is missing, or shapes do not fit.
        """
        if tokens.shape[-1] != self.dim:
            raise ValueError(
                f"dim is {self.dim}, but the encoder's tokens have width {tokens.shape[-1]}"
            )
        if num_masks < 1 or len(tokens) % num_masks:
            raise ValueError(
                f"tokens must have shape ({num_masks} * B, ..., {self.dim}), got "
                f"{tuple(tokens.shape)}"
            )
        with torch.autocast(tokens.device.type, enabled=False):
            latents, pooled = self._latents(tokens, mask, num_masks)
            terms: dict[str, Tensor] = {}
            if self.cross_weight or self.output_weight:
                queries = _apply(self.projection, latents).flatten(1, 2)
                if self.cross_weight:
                    keys = queries if self.token != "each" else _apply(self.projection, pooled)
                    bound = self._cross(queries, keys)
                    self._add(terms, "cross", bound, -self.cross_weight * bound)
                if self.output_weight:
                    bound = self._output(queries, *self._pixels(images, mask, num_masks))
                    self._add(terms, "output", bound, -self.output_weight * bound)
            if self.input_weight:
                bound, nll = self._input(latents, *self._pixels(images, mask, num_masks))
                self._add(terms, "input", bound, self.input_weight * bound.clamp(min=0.0))
                terms["variational"] = self.variational_weight * nll
        return terms

    @staticmethod
    def _add(terms: dict[str, Tensor], name: str, value: Tensor, loss: Tensor) -> None:
        terms[name] = loss
        terms[f"value_{name}"] = value.detach()

    def _latents(
        self, tokens: Tensor, mask: Tensor | None, num_masks: int
    ) -> tuple[Tensor, Tensor]:
        """Z ``(M, B, r, D)``, r latents per image and mask, and one for each ``(M, B, D)``."""
        prefix = self.num_prefix_tokens
        if tokens.ndim == 3 and mask is not None:
            sees_removed = tokens.shape[1] - prefix == mask[0].numel()
            if sees_removed and self.token == "each":
                raise ValueError("token='each' needs an encoder that sees visible patches only")
            mask = mask if sees_removed else None
        token = "cls" if self.token == "cls" else "mean"
        pooled = global_feature(tokens, token, prefix, mask).float()
        pooled = pooled.view(num_masks, -1, self.dim)
        if self.token != "each" or tokens.ndim == 2:
            return pooled[:, :, None], pooled
        latents = tokens[:, prefix:].float()
        return latents.view(num_masks, -1, *latents.shape[1:]), pooled

    def _cross(self, queries: Tensor, keys: Tensor) -> Tensor:
        num_masks = len(keys)
        if num_masks < 2:
            raise ValueError(
                "cross_weight needs at least 2 masks per image, got num_masks=1; use "
                "ComplementaryMasking(num_masks=4), or cross_weight=0"
            )
        bounds = infonce(queries[:, None], keys[None], self.temperature, self.gather_distributed)
        return (bounds.sum() - bounds.trace()) / (num_masks * (num_masks - 1))

    def _output(
        self, queries: Tensor, images: Tensor, visible: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        keys = self.target(images, ~visible, grid).view(len(queries), len(images), -1)
        return infonce(queries, keys, self.temperature, self.gather_distributed).mean()

    def _input(
        self, latents: Tensor, images: Tensor, visible: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """CLUB, and the negative log-likelihood of the variational network."""
        num_masks, batch, each, dim = latents.shape
        seen = visible if self.condition == "visible" else torch.ones_like(visible)
        out = self.variational(images, seen, grid).view(num_masks, batch, 1, 2 * dim)
        mean, raw = out.expand(-1, -1, each, -1).chunk(2, dim=3)
        log_variance = _LOG_VARIANCE * torch.tanh(raw / _LOG_VARIANCE)
        nll = -gaussian_log_likelihood(latents.detach(), mean, log_variance).mean() / dim
        groups = (num_masks * each, batch, dim)
        latents, mean, log_variance = (
            t.transpose(1, 2).reshape(groups) for t in (latents, mean, log_variance)
        )
        # Detached: q learns from the likelihood alone.
        bound = club(latents, mean.detach(), log_variance.detach(), self.gather_distributed)
        return bound, nll

    def _pixels(
        self, images: Tensor | None, mask: Tensor | None, num_masks: int
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Images ``(B, C, H, W)``, visible patches ``(M * B, N)`` and the grid."""
        if images is None or mask is None:
            raise ValueError("input_weight and output_weight need images and mask, got None")
        if len(mask) % num_masks or len(images) not in (len(mask), len(mask) // num_masks):
            raise ValueError(
                f"images and mask must have B and {num_masks} * B rows, got {len(images)} and "
                f"{len(mask)}"
            )
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must have in_channels={self.in_channels}, got {tuple(images.shape)}"
            )
        images = images[: len(mask) // num_masks]
        if mask.ndim == 3:
            grid = (mask.shape[1], mask.shape[2])
        else:
            height, width = images.shape[2:]
            side = math.isqrt(height * width // mask.shape[1])
            grid = (height // max(side, 1), width // max(side, 1))
        if grid[0] * grid[1] != mask[0].numel():
            raise ValueError(
                f"mask must cover the images' square patches, got {tuple(mask.shape)} for images "
                f"of {tuple(images.shape[2:])} pixels"
            )
        return images, ~mask.flatten(1).bool(), grid

    def extra_repr(self) -> str:
        weights = ("cross_weight", "output_weight", "input_weight", "variational_weight")
        others = ("token", "num_prefix_tokens", "temperature", "condition", "gather_distributed")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in weights + others)


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in the dtype of its weights (pure half-precision training), as float32."""
    weight = next(module.parameters(), x)
    return module(x.to(weight.dtype)).float()


def _positions(rows: int, cols: int, device: torch.device) -> Tensor:
    """``(rows * cols, 16)``: sines and cosines of the patches' centres, relative to the grid."""
    row = (torch.arange(rows, device=device) + 0.5) / rows
    col = (torch.arange(cols, device=device) + 0.5) / cols
    centres = torch.cartesian_prod(row, col)
    octaves = math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=device)
    angles = (centres[:, :, None] * octaves).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
