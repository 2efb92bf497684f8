"""The terms of MI-MAE: what they measure, and whom they teach."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mim_plugins.masking import ComplementaryMasking
from mim_plugins.regularizers import (
    MutualInformationLoss,
    Step,
    club,
    infonce,
    named_terms,
    term_losses,
)
from mim_plugins.regularizers.mutual_information import PatchSetNetwork

M, B, K, D = 4, 6, 16, 12
ALL = {"cross_weight": 0.3, "output_weight": 0.2, "input_weight": 0.1, "variational_weight": 0.7}


def loss_fn(**arguments: object) -> MutualInformationLoss:
    torch.manual_seed(0)
    return MutualInformationLoss(D, **{"hidden_dim": 32, "projection_dim": 8, **arguments})


def batch(images: int = B, grid: int = 8) -> dict:
    torch.manual_seed(1)
    pixels = torch.rand(images, 3, 4 * grid, 4 * grid)
    mask = ComplementaryMasking(M, patch_size=4)(pixels).mask
    tokens = torch.randn(M * images, 1 + grid**2 // 4, D).requires_grad_()
    return {"tokens": tokens, "images": pixels, "mask": mask, "num_masks": M}


def losses(module: MutualInformationLoss, **step: object) -> dict[str, torch.Tensor]:
    return module(Step(**step))


def total(module: MutualInformationLoss, tokens: torch.Tensor, **step: object) -> torch.Tensor:
    return module(tokens, **step)


def gradients(term: torch.Tensor, module: MutualInformationLoss, tokens: torch.Tensor) -> set[str]:
    """Who gets a nonzero gradient: the tokens, and which of the module's networks."""
    named = [("tokens", tokens), *module.named_parameters()]
    found = torch.autograd.grad(term, [p for _, p in named], allow_unused=True, retain_graph=True)
    return {
        name.split(".")[0]
        for (name, _), g in zip(named, found, strict=True)
        if g is not None and g.abs().max() > 0
    }


@pytest.mark.parametrize("token", ["mean", "cls", "each"])
def test_only_the_right_parameters_receive_each_gradient(token: str) -> None:
    module, inputs = loss_fn(**ALL, token=token), batch()
    with torch.no_grad():  # of a q that has learned nothing the estimate could be below 0
        module.input_weight = 0.1
    terms = losses(module, **inputs)
    assert list(terms) == [
        "loss_cross", "cross", "loss_output", "output", "loss_input", "input", "loss_variational",
    ]  # fmt: skip
    tokens = inputs["tokens"]
    assert gradients(terms["loss_cross"], module, tokens) == {"tokens", "projection"}
    assert gradients(terms["loss_output"], module, tokens) == {"tokens", "projection", "target"}
    assert gradients(terms["loss_variational"], module, tokens) == {"variational"}
    expected = {"tokens"} if terms["input"] > 0 else set()
    assert gradients(terms["loss_input"], module, tokens) == expected
    assert not any(terms[name].requires_grad for name in ("cross", "output", "input"))


def informative(images: int = 64) -> tuple[dict, MutualInformationLoss]:
    """Latents that are the colours of one-coloured images, and a q that has learned it."""
    inputs, module = batch(images), loss_fn(cross_weight=0.0, input_weight=0.1)
    colour = torch.rand(images, 3)
    inputs["images"] = colour[:, :, None, None].expand_as(inputs["images"])
    latent = 4 * (colour - 0.5).repeat(M, D // 3)
    inputs["tokens"] = (latent + 0.3 * torch.randn_like(latent)).requires_grad_()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        total(module, **inputs).backward()
        optimizer.step()
    inputs["tokens"].grad = None
    return inputs, module


def test_the_variational_network_learns_and_its_bound_falls_with_the_information() -> None:
    inputs, module = informative()
    terms = losses(module, **inputs)
    assert terms["input"] > 1
    assert gradients(terms["loss_input"], module, inputs["tokens"]) == {"tokens"}
    terms["loss_input"].backward()
    step = inputs["tokens"].detach() - 5.0 * inputs["tokens"].grad
    assert losses(module, **{**inputs, "tokens": step})["input"] < terms["input"]
    torch.manual_seed(2)
    unrelated = inputs["tokens"].detach()[torch.randperm(M * 64)]
    assert losses(module, **{**inputs, "tokens": unrelated})["input"] < 1


def test_an_estimate_below_zero_counts_as_zero() -> None:
    inputs, module = informative()
    backwards = -inputs["tokens"].detach().requires_grad_()  # q is wrong about all of them
    terms = losses(module, **{**inputs, "tokens": backwards})
    assert terms["input"] < -1
    assert terms["loss_input"] == 0


@pytest.mark.parametrize("token", ["mean", "cls"])
@pytest.mark.parametrize("projection_dim", [None, 8])
def test_cross_is_the_mean_over_ordered_pairs_of_masks(
    token: str, projection_dim: int | None
) -> None:
    inputs = batch()
    module = loss_fn(input_weight=0.0, token=token, projection_dim=projection_dim)
    tokens = inputs["tokens"].detach()
    latent = tokens[:, 0] if token == "cls" else tokens[:, 1:].mean(dim=1)
    parts = module.projection(latent).chunk(M)
    bounds = [infonce(parts[m], parts[n]) for m in range(M) for n in range(M) if m != n]
    terms = losses(module, **inputs)
    torch.testing.assert_close(terms["cross"], torch.stack(bounds).mean())
    torch.testing.assert_close(terms["loss_cross"], -0.1 * torch.stack(bounds).mean())
    torch.testing.assert_close(total(module, **inputs), terms["loss_cross"])


def test_each_token_is_found_by_the_pooled_latents_of_other_masks() -> None:
    inputs, module = batch(), loss_fn(input_weight=0.0, token="each", projection_dim=None)
    tokens = inputs["tokens"].detach()[:, 1:].view(M, B, K, D)
    bounds = [
        infonce(tokens[m].flatten(0, 1), tokens[n].mean(dim=1))
        for m in range(M)
        for n in range(M)
        if m != n
    ]
    torch.testing.assert_close(losses(module, **inputs)["cross"], torch.stack(bounds).mean())


@pytest.mark.parametrize("token", ["mean", "each"])
def test_input_is_club_of_the_visible_patches(token: str) -> None:
    inputs = batch()
    module = loss_fn(cross_weight=0.0, input_weight=2.0, token=token)
    out = module.variational(inputs["images"], ~inputs["mask"], (8, 8)).view(M, B, 2 * D)
    mean, log_variance = out[..., :D], 5 * torch.tanh(out[..., D:] / 5)
    latent = inputs["tokens"].detach()[:, 1:].view(M, B, K, D)
    if token == "mean":
        latent = latent.mean(dim=2, keepdim=True)
    rows = [(latent[:, :, k], mean, log_variance) for k in range(latent.shape[2])]
    expected = club(*(torch.cat(part) for part in zip(*rows, strict=True)))
    terms = losses(module, **inputs)
    torch.testing.assert_close(terms["input"], expected)
    torch.testing.assert_close(terms["loss_input"], 2 * expected.clamp(min=0))
    likelihood = torch.distributions.Normal(mean[:, :, None], (log_variance / 2).exp()[:, :, None])
    torch.testing.assert_close(terms["loss_variational"], -likelihood.log_prob(latent).mean())


def test_condition_decides_what_q_sees() -> None:
    inputs = batch()
    pixels = inputs["mask"].view(M, B, 1, 8, 8)[0].repeat_interleave(4, 2).repeat_interleave(4, 3)
    hidden_changed = torch.where(pixels, torch.rand_like(inputs["images"]), inputs["images"])
    first = {"tokens": inputs["tokens"][:B], "mask": inputs["mask"][:B], "num_masks": 1}
    for condition, same in (("visible", True), ("image", False)):
        module = loss_fn(cross_weight=0.0, input_weight=1.0, condition=condition)
        values = [
            losses(module, **first, images=images)["loss_variational"]
            for images in (inputs["images"], hidden_changed)
        ]
        assert torch.equal(*values) == same


def test_the_output_network_sees_removed_patches_only_and_not_where_they_are() -> None:
    inputs, module = batch(), loss_fn(output_weight=1.0, cross_weight=0.0, input_weight=0.0)
    value = losses(module, **inputs)["output"]
    visible = ~inputs["mask"].view(M, B, 1, 8, 8)[0]
    pixels = visible.repeat_interleave(4, 2).repeat_interleave(4, 3)
    one = {"tokens": inputs["tokens"][:B], "mask": inputs["mask"][:B], "num_masks": 1}
    before = losses(module, **one, images=inputs["images"])["output"]
    changed = torch.where(pixels, torch.rand_like(inputs["images"]), inputs["images"])
    assert torch.equal(losses(module, **one, images=changed)["output"], before)
    flipped = {"images": inputs["images"].flip(3), "mask": one["mask"].view(B, 8, 8).flip(2)}
    # Patches are mirrored by this too, so build images of constant patches.
    flat = F.interpolate(F.avg_pool2d(inputs["images"], 4), scale_factor=4)
    here = losses(module, **one, images=flat)["output"]
    flipped["images"] = flat.flip(3)
    there = losses(module, tokens=one["tokens"], **flipped, num_masks=1)["output"]
    torch.testing.assert_close(here, there)
    assert math.isfinite(value)


def test_masks_alone_give_images_away_unless_they_are_shared() -> None:
    """Latents that know nothing but the positions seen: docs/mi-mae.md, shortcut."""
    torch.manual_seed(0)
    images, positions = torch.zeros(32, 3, 32, 32), torch.randn(64, D)
    found = {}
    for shared in (False, True):
        masking = ComplementaryMasking(2, mask_ratio=0.5, patch_size=4, shared=shared)
        module = loss_fn(input_weight=0.0)
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        for _ in range(100):
            seen = (~masking(images).mask).float() @ positions
            terms = losses(module, tokens=seen - 0.5 * positions.sum(dim=0), num_masks=2)
            optimizer.zero_grad()
            terms["loss_cross"].backward()
            optimizer.step()
        found[shared] = terms["cross"].item()
    assert found[False] > 0.2  # nats, of images that are all the same
    assert found[True] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    module, inputs = loss_fn(**ALL), batch()
    inputs["tokens"] = (inputs["tokens"].detach() * 1e3).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = losses(module, **inputs)
    expected = losses(module, **{**inputs, "tokens": inputs["tokens"].detach().float()})
    for name, value in terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    total(module, **inputs).backward()
    assert inputs["tokens"].grad.dtype == dtype
    assert torch.isfinite(inputs["tokens"].grad).all()
    low = copy.deepcopy(module).to(dtype)  # pure half-precision training
    assert all(torch.isfinite(v) for v in losses(low, **inputs).values())


@pytest.mark.parametrize("token", ["mean", "cls", "each"])
def test_one_image_is_finite_and_teaches_q_only(token: str) -> None:
    module, inputs = loss_fn(**ALL, token=token), batch(images=1)
    terms = losses(module, **inputs)
    for name in ("cross", "output", "input"):
        assert terms[name] == 0
    total(module, **inputs).backward()
    assert inputs["tokens"].grad.abs().max() < 1e-6
    assert torch.isfinite(terms["loss_variational"])


def test_degenerate_input_is_finite() -> None:
    module, inputs = loss_fn(**ALL), batch()
    inputs["images"] = torch.full_like(inputs["images"], math.nan)
    inputs["tokens"] = torch.zeros_like(inputs["tokens"]).requires_grad_()
    loss = total(module, **inputs)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(inputs["tokens"].grad).all()


def test_weight_zero_has_no_parameters_and_no_term() -> None:
    module = loss_fn(cross_weight=0.0, input_weight=0.0, variational_weight=0.0)
    assert not list(module.parameters())
    assert losses(module, **batch()) == {}
    assert not term_losses(named_terms([module]), Step(torch.zeros(4, 3, D)))
    for name, networks in {
        "cross_weight": {"projection"},
        "output_weight": {"projection", "target"},
        "input_weight": {"variational"},
    }.items():
        weights = {"cross_weight": 0.0, "input_weight": 0.0, name: 1.0}
        found = {key.split(".")[0] for key, _ in loss_fn(**weights).named_parameters()}
        assert found == networks


def test_repeated_images_and_masks_on_a_grid_are_the_same() -> None:
    module, inputs = loss_fn(**ALL), batch()
    expected = total(module, **inputs)
    repeated = {**inputs, "images": inputs["images"].repeat(M, 1, 1, 1)}
    assert torch.equal(total(module, **repeated), expected)
    assert torch.equal(total(module, **{**inputs, "mask": inputs["mask"].view(-1, 8, 8)}), expected)
    assert torch.equal(total(module, **{**inputs, "mask": inputs["mask"].float()}), expected)


def test_encoders_that_see_removed_patches_are_pooled_over_the_visible_ones() -> None:
    module, inputs = loss_fn(input_weight=0.0), batch()
    ids = (~inputs["mask"]).nonzero()[:, 1].view(M * B, K)
    everywhere = torch.randn(M * B, 1 + 64, D)
    visible = everywhere[:, 1:].gather(1, ids[:, :, None].expand(-1, -1, D))
    inputs["tokens"] = torch.cat([everywhere[:, :1], visible], dim=1)
    torch.testing.assert_close(
        total(module, **{**inputs, "tokens": everywhere}), total(module, **inputs)
    )


def test_patch_set_network_ignores_unselected_patches_and_fits_any_grid() -> None:
    network = PatchSetNetwork(5, 16)
    for rows, cols, side in ((8, 8, 4), (3, 5, 16), (4, 4, 2)):
        images = torch.rand(2, 3, rows * side, cols * side)
        selected = torch.rand(6, rows * cols) < 0.5
        assert network(images, selected, (rows, cols)).shape == (6, 5)
    assert torch.isfinite(network(images, torch.zeros_like(selected), (rows, cols))).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cross_weight": -1}, ValueError, "cross_weight must be finite and at least 0, got -1"),
        ({"input_weight": math.nan}, ValueError, "input_weight must be finite"),
        ({"output_weight": "1"}, TypeError, "output_weight must be a number, got '1'"),
        ({"variational_weight": 0}, ValueError, "variational_weight must be positive if input"),
        ({"token": "max"}, ValueError, "token must be one of .*'each'.*got 'max'"),
        ({"condition": "pixels"}, ValueError, "condition must be one of .*got 'pixels'"),
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"projection_dim": 0}, ValueError, "projection_dim must be at least 1, got 0"),
        ({"hidden_dim": 0}, ValueError, "hidden_dim must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss_fn(**arguments)


def test_bad_input() -> None:
    module, inputs = loss_fn(**ALL), batch()
    with pytest.raises(ValueError, match=r"tokens must have shape \(5 \* B, P \+ K, D\) or"):
        total(module, **{**inputs, "num_masks": 5})
    with pytest.raises(ValueError, match="dim is 12, but the encoder's tokens have width 13"):
        total(module, **{**inputs, "tokens": torch.zeros(M * B, 5, D + 1)})
    with pytest.raises(ValueError, match="cross_weight needs at least 2 masks per image"):
        total(module, **{**inputs, "num_masks": 1})
    with pytest.raises(ValueError, match="need images and mask, got None"):
        module(inputs["tokens"], num_masks=M)
    with pytest.raises(ValueError, match="images and mask must have B and 4 \\* B rows"):
        total(module, **{**inputs, "images": torch.zeros(5, 3, 32, 32)})
    with pytest.raises(ValueError, match="images have no 60 square patches"):
        total(module, **{**inputs, "mask": torch.zeros(M * B, 60)})
    with pytest.raises(ValueError, match="token='each' needs an encoder that sees visible"):
        total(loss_fn(token="each"), **{**inputs, "tokens": torch.zeros(M * B, 65, D)})
