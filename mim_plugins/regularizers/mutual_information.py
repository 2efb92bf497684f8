"""The information terms of MI-MAE; derivation and choices in docs/mi-mae.md."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._check import check_bool, check_choice, check_int, check_positive, check_weight
from .._pixels import grid_of
from ..masking.base import Grid
from ..masking.kernels import unit_features
from .bounds import club, gaussian_log_likelihood, infonce
from .step import Step, Term, in_float32

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

    def forward(self, images: Tensor, selected: Tensor, grid: Grid) -> Tensor:
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
        embedded = in_float32(self.patch, patches)
        share = selected.view(-1, batch, rows * cols).to(embedded.dtype)
        share = share / share.sum(dim=2, keepdim=True).clamp(min=1)
        return in_float32(self.joint, torch.einsum("mbn,bnh->mbh", share, embedded).flatten(0, 1))


class MutualInformationLoss(Term):
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
        temperature: Of the InfoNCE critics. Default: 0.1.
        projection_dim: Compare latents after an MLP with this output dimension; None: as
            they are. Default: 256.
        hidden_dim: Width of all MLPs. Default: 512.
        condition: What q sees: the ``"visible"`` patches, or the whole ``"image"``.
            Default: ``"visible"``, what the encoder sees.
        in_channels: C of the images. Default: 3.
        gather_distributed: Take the other images from all ranks, with gradient; the ranks'
            batches must be equal in size. Default: True.
        weight: Factor of all four. Default: 1.
        name: As of :class:`Term`. Default: ``"mutual_information"``.

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

    name = "mutual_information"

    def __init__(
        self,
        dim: int,
        *,
        cross_weight: float = 0.1,
        output_weight: float = 0.0,
        input_weight: float = 0.001,
        variational_weight: float = 1.0,
        token: str = "mean",
        temperature: float = 0.1,
        projection_dim: int | None = 256,
        hidden_dim: int = 512,
        condition: str = "visible",
        in_channels: int = 3,
        gather_distributed: bool = True,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name=name)
        self.cross_weight = check_weight("cross_weight", cross_weight)
        self.output_weight = check_weight("output_weight", output_weight)
        self.input_weight = check_weight("input_weight", input_weight)
        self.variational_weight = check_weight("variational_weight", variational_weight)
        if input_weight and not variational_weight:
            raise ValueError(
                "variational_weight must be positive if input_weight is: an untrained q bounds "
                f"nothing, got {variational_weight} and {input_weight}"
            )
        self.dim = check_int("dim", dim)
        check_int("hidden_dim", hidden_dim)
        self.in_channels = check_int("in_channels", in_channels)
        if projection_dim is not None:
            check_int("projection_dim", projection_dim)
        self.token = check_choice("token", token, TOKENS)
        self.temperature = check_positive("temperature", temperature)
        self.condition = check_choice("condition", condition, CONDITIONS)
        self.gather_distributed = check_bool("gather_distributed", gather_distributed)

        self.projection: nn.Module = nn.Identity()
        if projection_dim is not None and (cross_weight or output_weight):
            self.projection = _mlp(dim, hidden_dim, projection_dim)
        if output_weight:
            # Without positions: they would give away the mask instead of the image.
            self.target = PatchSetNetwork(projection_dim or dim, hidden_dim, in_channels, False)
        if input_weight:
            self.variational = PatchSetNetwork(2 * dim, hidden_dim, in_channels)

    def formula(self, step: Step) -> dict[str, Tensor]:
        """``loss_<term>``, weighted, and ``<term>``, the detached estimate in nats; scalars.

        ``cross`` needs a step of at least two masks, ``output`` and ``input`` one with images
        and masks.

        Raises:
            ValueError: If what a term needs is missing, or shapes do not fit.
        """
        if step.tokens.shape[-1] != self.dim:
            raise ValueError(
                f"dim is {self.dim}, but the encoder's tokens have width {step.tokens.shape[-1]}"
            )
        latents, pooled = self._latents(step)
        terms: dict[str, Tensor] = {}
        if self.cross_weight or self.output_weight:
            queries = in_float32(self.projection, latents).flatten(1, 2)
            if self.cross_weight:
                keys = queries if self.token != "each" else in_float32(self.projection, pooled)
                bound = self._cross(queries, keys)
                terms |= {"loss_cross": -self.cross_weight * bound, "cross": bound.detach()}
            if self.output_weight:
                bound = self._output(queries, *self._pixels(step))
                terms |= {"loss_output": -self.output_weight * bound, "output": bound.detach()}
        if self.input_weight:
            bound, nll = self._input(latents, *self._pixels(step))
            loss = self.input_weight * bound.clamp(min=0.0)
            terms |= {"loss_input": loss, "input": bound.detach()}
            terms["loss_variational"] = self.variational_weight * nll
        return terms

    def _latents(self, step: Step) -> tuple[Tensor, Tensor]:
        """Z ``(M, B, r, D)``, r latents per image and mask, and one for each ``(M, B, D)``."""
        if self.token == "each" and step.sees_removed:
            raise ValueError("token='each' needs an encoder that sees visible patches only")
        pooled = step.pooled("cls" if self.token == "cls" else "mean").float()
        pooled = pooled.view(step.num_masks, -1, self.dim)
        if self.token != "each" or step.tokens.ndim == 2:
            return pooled[:, :, None], pooled
        latents = step.tokens[:, step.num_prefix_tokens :].float()
        return latents.view(step.num_masks, -1, *latents.shape[1:]), pooled

    def _cross(self, queries: Tensor, keys: Tensor) -> Tensor:
        num_masks = len(keys)
        if num_masks < 2:
            raise ValueError(
                "cross_weight needs at least 2 masks per image, got num_masks=1; use "
                "ComplementaryMasking(num_masks=4), or cross_weight=0"
            )
        bounds = self._infonce(queries[:, None], keys[None])
        return (bounds.sum() - bounds.trace()) / (num_masks * (num_masks - 1))

    def _output(self, queries: Tensor, images: Tensor, visible: Tensor, grid: Grid) -> Tensor:
        keys = self.target(images, ~visible, grid).view(len(queries), len(images), -1)
        return self._infonce(queries, keys).mean()

    def _infonce(self, queries: Tensor, keys: Tensor) -> Tensor:
        gather, temperature = self.gather_distributed, self.temperature
        return infonce(queries, keys, temperature=temperature, gather_distributed=gather)

    def _input(
        self, latents: Tensor, images: Tensor, visible: Tensor, grid: Grid
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
        gather = self.gather_distributed
        bound = club(latents, mean.detach(), log_variance.detach(), gather_distributed=gather)
        return bound, nll

    def _pixels(self, step: Step) -> tuple[Tensor, Tensor, Grid]:
        """Images ``(B, C, H, W)``, visible patches ``(M * B, N)`` and the grid."""
        images, mask, num_masks = step.images, step.mask, step.num_masks
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
        if mask.ndim == 2:
            mask = mask.unflatten(1, grid_of(mask.shape[1], *images.shape[2:]))
        return images, ~mask.flatten(1).bool(), (mask.shape[1], mask.shape[2])


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))


def _positions(rows: int, cols: int, device: torch.device) -> Tensor:
    """``(rows * cols, 16)``: sines and cosines of the patches' centres, relative to the grid."""
    row = (torch.arange(rows, device=device) + 0.5) / rows
    col = (torch.arange(cols, device=device) + 0.5) / cols
    centres = torch.cartesian_prod(row, col)
    octaves = math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=device)
    angles = (centres[:, :, None] * octaves).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
