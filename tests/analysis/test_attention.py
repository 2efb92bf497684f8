"""Attention of the last layer, against what the modules themselves make of it."""

import pytest
import torch
from torch import nn

from mim_plugins.analysis import attention_map, last_layer_attention, plot_attention


def timm_vit() -> nn.Module:
    models = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed")
    torch.manual_seed(0)
    return models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, qk_norm=True
    ).eval()


def mmpretrain_vit() -> nn.Module:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from mmpretrain.models.selfsup import MAEViT

    torch.manual_seed(0)
    arch = {"embed_dims": 32, "num_layers": 2, "num_heads": 4, "feedforward_channels": 64}
    model = MAEViT(arch, img_size=32, patch_size=8)
    model.eval()
    return model


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
    ).eval()


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_timm_against_its_unfused_attention() -> None:
    model = timm_vit()
    found = last_layer_attention(model, lambda: model(IMAGES))
    attention = model.blocks[-1].attn
    attention.fused_attn = False
    kept: list[torch.Tensor] = []
    attention.attn_drop.register_forward_hook(lambda m, args, out: kept.append(args[0]))
    with torch.no_grad():
        model(IMAGES)
    torch.testing.assert_close(found, kept[0].mean(dim=1))
    torch.testing.assert_close(found.sum(dim=2), torch.ones(3, 17))


def test_mmpretrain_against_its_output() -> None:
    """With one head only its weights times its values, projected, are the module's output."""
    model = mmpretrain_vit()
    attention = model.layers[-1].attn
    attention.num_heads, attention.head_dims = 1, 32
    kept: list[tuple] = []
    attention.register_forward_hook(lambda m, args, out: kept.append((args[0], out)))
    found = last_layer_attention(model, lambda: model(IMAGES, mask=None))
    tokens, output = kept[0]
    value = attention.qkv(tokens)[..., 64:]
    torch.testing.assert_close(attention.proj(found @ value), output, atol=1e-5, rtol=1e-4)


def test_torchvision_against_its_own_weights() -> None:
    model = torchvision_vit()
    attention = model.encoder.layers[-1].self_attention
    kept: list[torch.Tensor] = []
    attention.register_forward_hook(lambda m, args, out: kept.append(args[0]))
    found = last_layer_attention(model, lambda: model(IMAGES))
    expected = attention(kept[0], kept[0], kept[0])[1]
    torch.testing.assert_close(found, expected.detach())


def test_swin_of_simmim() -> None:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from mmpretrain.models.selfsup import SimMIMSwinTransformer

    torch.manual_seed(0)
    arch = {"embed_dims": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 2]}
    model = SimMIMSwinTransformer(arch, 64, stage_cfgs={"block_cfgs": {"window_size": 2}})
    model.eval()
    images = torch.rand(3, 3, 64, 64)
    found = last_layer_attention(model, lambda: model(images, None))
    assert found.shape == (3, 4, 4)  # the last stage is one window of 2 x 2
    torch.testing.assert_close(found.sum(dim=2), torch.ones(3, 4))
    assert attention_map(found, (2, 2), (1, 0), prefix_tokens=0).shape == (3, 2, 2)


def test_nothing_is_left_behind() -> None:
    model = timm_vit()
    before = model(IMAGES)
    last_layer_attention(model, lambda: model(IMAGES))
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(IMAGES), before)
    with pytest.raises(ZeroDivisionError):
        last_layer_attention(model, lambda: 1 / 0)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_maps_of_class_token_and_of_a_patch() -> None:
    attention = torch.rand(2, 7, 7)
    assert torch.equal(attention_map(attention, (2, 3)), attention[:, 0, 1:].view(2, 2, 3))
    found = attention_map(attention, (2, 3), token=(1, 2))
    assert torch.equal(found, attention[:, 6, 1:].view(2, 2, 3))


def test_plot() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    maps = {"first": torch.rand(3, 4, 4), "second": torch.rand(3, 4, 4)}
    figure = plot_attention(IMAGES, maps, token=(2, 1))
    assert len(figure.axes) == 9
    marked = [axis for axis in figure.axes if axis.patches]
    assert len(marked) == 6
    assert marked[0].patches[0].get_bbox().bounds == (8.0, 16.0, 8.0, 8.0)
    with pytest.raises(ValueError, match="maps"):
        plot_attention(IMAGES, {"first": torch.rand(2, 4, 4)})


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="no attention module"):
        last_layer_attention(nn.Linear(1, 1), lambda: None)
    with pytest.raises(RuntimeError, match="ran no attention"):
        last_layer_attention(timm_vit(), lambda: None)
    attention = torch.rand(2, 7, 7)
    with pytest.raises(ValueError, match="attention must have shape"):
        attention_map(attention, (3, 3))
    with pytest.raises(ValueError, match="lie in the grid"):
        attention_map(attention, (2, 3), token=(2, 0))
    with pytest.raises(ValueError, match="no \\[CLS\\]"):
        attention_map(torch.rand(2, 6, 6), (2, 3), prefix_tokens=0)
