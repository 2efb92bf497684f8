"""The graphs that masking induces on a small discrete image set, exactly (U-MAE, 3.1-4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import check_choice, check_int, check_weight

MAX_VIEWS = 4096  # a 4096 x 4096 float64 matrix has 128 MiB
MAX_DRAWS = 2_000_000  # pairs of an image and a mask


@dataclass(frozen=True, eq=False)
class MaskGraph:
    """All views of all images under all masks of one ratio, and their exact probabilities.

    Built by :func:`mask_graph`. M images are cut into n patches; a mask keeps ``n - n2``
    patches, the input view x1, and removes n2, the target view x2. There are N1 different
    input views, N2 different target views and c classes. Probabilities are float64.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022; docs/u-mae.md lists where the paper's statements fail on
    such graphs and what holds instead.

    Attributes:
        input_ids: ``(M, C)`` long in [0, N1), the input view of every image under each of
            the ``C = binomial(n, n2)`` masks.
        target_ids: ``(M, C)`` long in [0, N2), the target view.
        probabilities: ``(M,)``, of the images.
        labels: ``(M,)`` long in [0, c), of the images.
        mask_ratio: n2 / n.
    """

    input_ids: Tensor
    target_ids: Tensor
    probabilities: Tensor
    labels: Tensor
    mask_ratio: float

    def _joint(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Probability that row view and column item occur together."""
        num_rows, num_cols = int(rows.max()) + 1, int(cols.max()) + 1
        flat = (rows * num_cols + cols).flatten()
        masks = self.input_ids.shape[1]  # of each image, equally probable
        draws = self.probabilities.repeat_interleave(masks) / masks
        return torch.bincount(flat, draws, num_rows * num_cols).view(num_rows, num_cols)

    @cached_property
    def adjacency(self) -> Tensor:
        """``(N2, N1)``: A_M, the mask graph's edges, joint probability of x2 and x1."""
        return self._joint(self.target_ids, self.input_ids)

    @cached_property
    def input_degrees(self) -> Tensor:
        """``(N1,)``: d_x1, the probability of each input view."""
        return self.adjacency.sum(dim=0)

    @cached_property
    def target_degrees(self) -> Tensor:
        """``(N2,)``: d_x2, the probability of each target view."""
        return self.adjacency.sum(dim=1)

    @property
    def normalized_adjacency(self) -> Tensor:
        """``(N2, N1)``: D2^-1/2 A_M D1^-1/2."""
        return self.adjacency * (self.target_degrees[:, None] * self.input_degrees).rsqrt()

    @property
    def augmentation(self) -> Tensor:
        """``(N1, N1)``: A, the probability that x1 and x1' are drawn for one target."""
        return self.adjacency.T @ (self.adjacency / self.target_degrees[:, None])

    @cached_property
    def eigenvalues(self) -> Tensor:
        """``(N1,)``: of the normalised augmentation graph, descending, in [0, 1].

        They are the squared singular values of :attr:`normalized_adjacency`. Exchanging
        inputs and targets transposes that matrix: mask ratios ρ and 1 - ρ have the same
        eigenvalues, up to the number of zeros.
        """
        values = torch.linalg.svdvals(self.normalized_adjacency).square()
        return F.pad(values, (0, len(self.input_degrees) - len(values)))

    @property
    def num_components(self) -> int:
        """Connected components: the multiplicity of the eigenvalue 1."""
        return int((self.eigenvalues > 1 - 1e-9).sum())

    def residual(self, dim: int) -> float:
        """Sum of λ_i^2 over i > dim: what features of ``dim`` dimensions cannot fit."""
        check_int("dim", dim)
        return self.eigenvalues[dim:].square().sum().item()

    # Labels -------------------------------------------------------------------------

    @cached_property
    def input_classes(self) -> Tensor:
        """``(N1, c)``: joint probability of input view and class."""
        return self._joint(self.input_ids, self.labels[:, None].expand_as(self.input_ids))

    @cached_property
    def target_classes(self) -> Tensor:
        """``(N2, c)``: joint probability of target view and class."""
        return self._joint(self.target_ids, self.labels[:, None].expand_as(self.target_ids))

    @property
    def input_labels(self) -> Tensor:
        """``(N1,)`` long: y(x1), the most probable class (Bayes label; ties: smallest)."""
        return self.input_classes.argmax(dim=1)

    @property
    def label_error(self) -> float:
        """α of Theorem 4.1: probability that y(x1) is not the image's label."""
        return _bayes_error(self.input_classes)

    @property
    def target_label_error(self) -> float:
        """The same for the target view: α at mask ratio 1 - ρ."""
        return _bayes_error(self.target_classes)

    @property
    def class_mixing(self) -> float:
        """Probability that two neighbours in the augmentation graph differ in y (Eq. 30).

        At most ``2 (label_error + target_label_error)``.
        """
        classes = F.one_hot(self.input_labels, self.input_classes.shape[1]).double()
        per_target = self.adjacency @ classes
        degrees = per_target.sum(dim=1, keepdim=True)
        return (per_target * (degrees - per_target) / degrees).sum().item()

    def links(self, through: str = "target") -> tuple[float, float]:
        """Probability to get from an image to another of its class, and of another class.

        One step: draw a view of an image, then draw an image that has this view.

        Args:
            through: ``"target"``: the view is x2, the step that the augmentation graph
                makes. ``"input"``: the view is x1, images that the encoder confuses.

        Returns:
            Probabilities of another image of the same class and of an image of another
            class; what is left is the chance to return to the image itself.
        """
        check_choice("through", through, ("target", "input"))
        views = self.target_ids if through == "target" else self.input_ids
        images = torch.arange(len(views), device=views.device)[:, None].expand_as(views)
        joint = self._joint(views, images)
        pairs = joint.T @ (joint / joint.sum(dim=1, keepdim=True))
        same_class = self.labels[:, None] == self.labels
        same_image = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
        intra = pairs[same_class & ~same_image].sum().item()
        return intra, pairs[~same_class].sum().item()

    # Population losses of features given per view -----------------------------------

    def alignment_loss(self, features: Tensor) -> float:
        """Eq. 5: minus the mean of h(x1) . h(x1') over neighbours. ``(N1, k)`` features."""
        per_target = self.adjacency @ features.double()
        return -(per_target.square().sum(dim=1) / self.target_degrees).sum().item()

    def asymmetric_loss(self, outputs: Tensor, target_outputs: Tensor) -> float:
        """Eq. 4: minus the mean of h(x1) . h_g(x2). ``(N1, k)`` and ``(N2, k)``.

        With outputs of norm 1, at least ``alignment_loss(outputs) / 2 - 1 / 2``
        (Theorem 3.3).
        """
        return -(target_outputs.double() * (self.adjacency @ outputs.double())).sum().item()

    def uniformity_loss(self, features: Tensor) -> float:
        """Eq. 11 over all pairs of input views, as given: no normalisation."""
        features = features.double()
        moment = features.T @ (self.input_degrees[:, None] * features)
        return moment.square().sum().item()

    def spectral_contrastive_loss(self, features: Tensor) -> float:
        """Eq. 12: ``2 alignment_loss + uniformity_loss`` of ``(N1, k)`` features."""
        return 2 * self.alignment_loss(features) + self.uniformity_loss(features)

    def umae_lower_bound(self, dim: int, lipschitz: float = 1.0, epsilon: float = 0.0) -> float:
        """Theorem 4.2, corrected: no model's U-MAE loss is smaller.

        ``-1/(4L) sum_{i <= dim} λ_i^2 + 1/(2L) - ε`` for features of norm 1 and λ of Eq. 10
        equal to ``1/(4L)``. The paper's ``1/(4L) sum_{i > dim} λ_i^2 - ε + const`` is the same
        up to ``1/(4L)`` times the sum of all λ_i^2, which depends on the mask ratio.

        Args:
            dim: k, number of feature dimensions, at least 1.
            lipschitz: L of the decoder, at least 1. Default: 1.
            epsilon: ε of Assumption 3.1, at least 0. Default: 0.

        Raises:
            ValueError: If an argument is out of range.
        """
        check_int("dim", dim)
        if lipschitz < 1:
            raise ValueError(f"lipschitz must be at least 1, got {lipschitz}")
        check_weight("epsilon", epsilon)
        fitted = self.eigenvalues[:dim].square().sum().item()
        return -fitted / (4 * lipschitz) + 1 / (2 * lipschitz) - epsilon


def mask_graph(
    images: Tensor,
    labels: Tensor,
    mask_ratio: float,
    positions: bool = True,
    probabilities: Tensor | None = None,
    max_views: int = MAX_VIEWS,
) -> MaskGraph:
    """Enumerate all views of a small discrete image set (section 3.1).

    Args:
        images: ``(M, n)`` integers, n patches of each image as symbols; or ``(M, n, s)``,
            patches of s values, of which equal ones are one symbol.
        labels: ``(M,)`` integers.
        mask_ratio: ρ, the share of patches removed. ``n * mask_ratio`` must be one of
            1, ..., n - 1; all masks of that size are equally probable.
        positions: Whether a view includes the positions of its patches, as for an encoder
            with position embeddings. Then views under different masks always differ and
            the graph has at least one component per mask. If False a view is the row of
            its patches in raster order, Eq. 1 as written. Default: True.
        probabilities: ``(M,)`` positive, of the images; normalised to sum 1. Default: equal.
        max_views: Refuse sets with more different input or target views than this.

    Raises:
        TypeError: If ``images`` are symbols but no integers.
        ValueError: If shapes do not fit, an argument is out of range, or there are too
            many views.

    Example:
        >>> images = torch.tensor([[0, 1, 1], [0, 2, 2]])
        >>> graph = mask_graph(images, torch.tensor([0, 1]), mask_ratio=1 / 3)
        >>> graph.label_error, round(graph.class_mixing, 4)
        (0.0, 0.1667)
    """
    if images.ndim not in (2, 3) or labels.shape != images.shape[:1]:
        raise ValueError(
            "images and labels must have shapes (M, n) or (M, n, s) and (M,), got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    num_images, num_patches = images.shape[:2]
    if num_images == 0 or num_patches < 2:
        raise ValueError(
            f"images must be at least 1, of at least 2 patches, got {tuple(images.shape)}"
        )
    if images.ndim == 3:
        symbols = images.flatten(0, 1).unique(dim=0, return_inverse=True)[1]
        images = symbols.view(num_images, num_patches)
    elif images.is_floating_point() or images.is_complex():
        raise TypeError(f"images (M, n) must be integer symbols, got {images.dtype}")
    num_masked = round(num_patches * mask_ratio)
    if not 0 < num_masked < num_patches or abs(num_masked - num_patches * mask_ratio) > 1e-6:
        raise ValueError(
            f"mask_ratio must be i / {num_patches} for i in 1..{num_patches - 1} with "
            f"{num_patches} patches, got {mask_ratio}"
        )
    if probabilities is None:
        probabilities = torch.ones(num_images, device=images.device)
    elif probabilities.shape != labels.shape or not bool((probabilities > 0).all()):
        raise ValueError(f"probabilities must be {num_images} positive numbers")
    probabilities = probabilities.double()
    draws = num_images * math.comb(num_patches, num_masked)
    if draws > MAX_DRAWS:
        raise ValueError(
            f"{num_images} images with {math.comb(num_patches, num_masked)} masks each are more "
            f"than {MAX_DRAWS} draws: take fewer images or fewer, larger patches"
        )

    removed = list(combinations(range(num_patches), num_masked))
    kept = [[i for i in range(num_patches) if i not in mask] for mask in removed]
    ids = []
    for name, patches in (("input", kept), ("target", removed)):
        index = torch.tensor(patches, device=images.device)  # (C, patches of the view)
        views = images.long()[:, index]
        if positions:
            mask_number = torch.arange(len(index), device=images.device)
            views = torch.cat([views, mask_number.expand(num_images, -1)[:, :, None]], dim=2)
        distinct, inverse = views.flatten(0, 1).unique(dim=0, return_inverse=True)
        if len(distinct) > max_views:
            raise ValueError(
                f"{len(distinct)} different {name} views are more than max_views={max_views}: "
                "take fewer images or fewer, larger patches"
            )
        ids.append(inverse.view(num_images, len(index)))
    return MaskGraph(
        ids[0],
        ids[1],
        probabilities / probabilities.sum(),
        labels.unique(return_inverse=True)[1],
        num_masked / num_patches,
    )


def _bayes_error(joint: Tensor) -> float:
    """Probability of all but the most probable class, ``(views, c)`` joint probabilities."""
    return (joint.sum(dim=1) - joint.amax(dim=1)).sum().item()
