"""wrap() on unmodified models of transformers, trained by its own Trainer."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (extra transformers)")
from transformers import (
    DeiTConfig,
    DeiTForMaskedImageModeling,
    PreTrainedModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from mim_plugins.masking import ComplementaryMasking, DPPMasking, GridMasking, RandomMasking
from mim_plugins.regularizers import MutualInformationLoss, UniformityLoss, uniformity
from mim_plugins.transformers import wrap
from mim_plugins.transformers.__main__ import main
from mim_plugins.transformers.wrap import term_values

SMALL = dict(
    image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=32,
)  # fmt: skip


def mae(**config: object) -> ViTMAEForPreTraining:
    torch.manual_seed(0)
    decoder = dict(
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )  # fmt: skip
    return ViTMAEForPreTraining(ViTMAEConfig(**{**SMALL, **decoder, **config})).train()


def simmim() -> ViTForMaskedImageModeling:
    torch.manual_seed(0)
    return ViTForMaskedImageModeling(ViTConfig(**SMALL, encoder_stride=8)).train()


def deit() -> DeiTForMaskedImageModeling:
    torch.manual_seed(0)
    return DeiTForMaskedImageModeling(DeiTConfig(**SMALL, encoder_stride=8)).train()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def train(model: PreTrainedModel, images: torch.Tensor, folder: Path) -> list[float]:
    """Losses of four steps by transformers' own Trainer."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=3,
    )  # fmt: skip
    dataset = [{"pixel_values": image} for image in images]
    trainer = Trainer(model, arguments, train_dataset=dataset)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "masking", [DPPMasking(tau=0.0), GridMasking(), RandomMasking()], ids=["dpp", "grid", "random"]
)
def test_mae_takes_the_masks_of_its_images(masking: RandomMasking, images: torch.Tensor) -> None:
    model = wrap(mae(), masking=masking)
    torch.manual_seed(1)
    output = model(images)
    torch.manual_seed(1)
    expected = masking(images, mask_ratio=0.75, patch_size=8)
    assert torch.equal(output.mask.bool(), expected.mask)
    assert torch.equal(output.ids_restore, expected.ids_restore)


def test_neutral_is_stock(images: torch.Tensor, tmp_path: Path) -> None:
    stock, model = mae(), mae()
    wrap(model, masking=DPPMasking(tau=1.0), regularizers=[UniformityLoss(weight=0.0)])
    assert train(stock, images, tmp_path) == train(model, images, tmp_path)
    for (name, mine), (other, theirs) in zip(
        model.state_dict().items(), stock.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(mine, theirs)
    model.save_pretrained(tmp_path / "model")
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(again.vit.layernorm.weight, stock.vit.layernorm.weight)


def test_terms_alone_leave_the_masks_of_stock(images: torch.Tensor) -> None:
    stock, model = mae(), wrap(mae(), regularizers=[UniformityLoss(weight=0.5)])
    torch.manual_seed(1)
    expected = stock(images)
    torch.manual_seed(1)
    output = model(images)
    assert torch.equal(output.mask, expected.mask)
    features = stock.vit(images, noise=expected.ids_restore.float()).last_hidden_state[:, 0]
    torch.testing.assert_close(output.loss - expected.loss, 0.5 * uniformity(features))
    torch.testing.assert_close(
        term_values(model)["loss_uniformity"], 0.5 * uniformity(features.detach())
    )
    stock.eval(), model.eval()
    torch.manual_seed(1)
    expected = stock(images)
    torch.manual_seed(1)
    assert torch.equal(model(images).loss, expected.loss)


@pytest.mark.parametrize("build", [simmim, deit])
@pytest.mark.parametrize("token", ["cls", "mean"])
def test_masked_image_models(build: object, token: str, images: torch.Tensor) -> None:
    stock = build()
    model = wrap(
        copy.deepcopy(stock), masking=GridMasking(mask_ratio=0.5, random_shift=False),
        regularizers=[UniformityLoss(weight=1.0, token=token)],
    )  # fmt: skip
    mask = GridMasking(mask_ratio=0.5, random_shift=False)(images, patch_size=8).mask
    stock.eval()  # no dropout in these models
    expected = stock(images, bool_masked_pos=mask, output_hidden_states=True)
    tokens = stock.base_model(images, bool_masked_pos=mask).last_hidden_state
    prefix = tokens.shape[1] - mask.shape[1]
    if token == "cls":
        features = tokens[:, 0]
    else:
        features = torch.stack(
            [row[prefix:][~hidden].mean(dim=0) for row, hidden in zip(tokens, mask, strict=True)]
        )
    torch.testing.assert_close(model(images).loss, expected.loss + uniformity(features))
    model.eval()
    assert model(images).loss is None  # whole images, as stock


def test_ratio_is_simmims_unless_the_masking_has_one(images: torch.Tensor) -> None:
    seen = []
    for masking in (RandomMasking(), RandomMasking(mask_ratio=0.25)):
        model = simmim()
        model.vit.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["bool_masked_pos"]), with_kwargs=True
        )
        wrap(model, masking=masking)(images)
    assert [int(mask.sum(dim=1)[0]) for mask in seen] == [16 - int(16 * 0.4), 4]


def test_several_masks_and_terms_with_weights(images: torch.Tensor, tmp_path: Path) -> None:
    model = wrap(
        mae(), masking=ComplementaryMasking(num_masks=4),
        regularizers=[MutualInformationLoss(16, hidden_dim=16, projection_dim=8)],
    )  # fmt: skip
    output = model(images)
    assert len(output.logits) == 16
    assert output.mask.view(4, 4, 16).sum(dim=0).eq(3).all()  # each patch visible once
    before = copy.deepcopy(model.regularizers.state_dict())
    assert len(train(model, images, tmp_path)) == 4
    assert any(not torch.equal(before[k], v) for k, v in model.regularizers.state_dict().items())
    extra = set(model.state_dict()) - set(mae().state_dict())
    assert extra
    assert all(name.startswith("regularizers.") for name in extra)


def test_copies_and_pickles(images: torch.Tensor) -> None:
    model = wrap(mae(), masking=DPPMasking(), regularizers=[UniformityLoss(weight=1.0)])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        expected = model(images).loss
        torch.manual_seed(1)
        assert torch.equal(other(images).loss, expected)
        assert other.mim_plugin is not model.mim_plugin


def test_given_masks(images: torch.Tensor) -> None:
    model = wrap(simmim(), masking=RandomMasking())
    given = torch.zeros(4, 16, dtype=torch.bool)
    with pytest.raises(TypeError, match="bool_masked_pos is given"):
        model(images, bool_masked_pos=given)
    model.eval()
    assert model(images, bool_masked_pos=given).loss == 0
    replaced = wrap(simmim(), masking=RandomMasking(), replace_masks=True)
    seen = []
    replaced.vit.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["bool_masked_pos"]), with_kwargs=True
    )
    for removed in (1, 5, 15):  # other masks, of the same ratio
        given[:] = torch.arange(16) < removed
        replaced(images, bool_masked_pos=given)
        assert seen[-1].sum(dim=1).tolist() == [removed] * 4
        assert not torch.equal(seen[-1], given)
    with pytest.raises(ValueError, match="mask_ratio must be in"):
        replaced(images, bool_masked_pos=torch.zeros(4, 16, dtype=torch.bool))


@pytest.mark.parametrize(
    ("build", "arguments", "error", "text"),
    [
        (lambda: torch.nn.Linear(1, 1), {"masking": DPPMasking()}, TypeError, "PreTrainedModel"),
        (mae, {}, ValueError, "needs masking or regularizers"),
        (mae, {"masking": "dpp"}, TypeError, "masking must be"),
        (
            lambda: ViTForImageClassification(ViTConfig(**SMALL)), {"masking": DPPMasking()},
            TypeError, "takes neither noise nor bool_masked_pos",
        ),
        (
            lambda: wrap(mae(), masking=DPPMasking()), {"masking": DPPMasking()},
            ValueError, "wrapped already",
        ),
    ],
    ids=["module", "nothing", "masking", "classifier", "twice"],
)  # fmt: skip
def test_what_it_refuses(build: object, arguments: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        wrap(build(), **arguments)


def test_terms_on_swin_are_refused_in_the_first_step(images: torch.Tensor) -> None:
    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4,
        encoder_stride=4,
    )  # fmt: skip
    model = SwinForMaskedImageModeling(config).train()
    wrap(model, masking=RandomMasking(), regularizers=[UniformityLoss(token="mean")])
    with pytest.raises((TypeError, ValueError)):
        model(images)


SCRIPT = """
import sys, torch
from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

model = ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=8, hidden_size=16,
    num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, decoder_hidden_size=16,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32))
arguments = TrainingArguments(output_dir=sys.argv[1], max_steps=1, report_to=[], use_cpu=True,
    save_strategy="no", disable_tqdm=True)
Trainer(model=model, args=arguments,
    train_dataset=[{"pixel_values": torch.rand(3, 32, 32)}] * 8).train()
print("masking:", getattr(model, "mim_plugin", None))
"""


def test_an_unchanged_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "run_mae.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(Trainer, "__init__", Trainer.__init__)  # undone afterwards
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    main(["--masking", '{"type": "DPPMasking", "tau": 0.25}', str(script), str(tmp_path)])
    assert "masking: masking=DPPMasking(" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.py"], "script must be a file"),
        ([__file__], "must be given"),
        (["--masking", '{"type": "Nothing"}', __file__], "must name its type"),
        (["--masking", '{"type": "DPPMasking", "tau": 2}', __file__], "tau must be in"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert text in capsys.readouterr().err


def test_masks_by_the_model_s_own_patch_tokens(images: torch.Tensor) -> None:
    """Of whole images, in their order; nothing else of the model notices."""
    model = wrap(mae(), masking=DPPMasking(tau=0.0, features="encoder"))
    # A ViT with these weights and MAE's fixed positions sees all patches.
    config = ViTConfig(**SMALL)
    vit = ViTForImageClassification(config).vit.eval()
    vit.load_state_dict(model.vit.state_dict(), strict=False)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        return vit(images).last_hidden_state[:, 1:]

    torch.manual_seed(1)
    expected = DPPMasking(tau=0.0, features=tokens)(images, mask_ratio=0.75, patch_size=8)
    seen = []
    model.vit.register_forward_hook(lambda *_: seen.append(1))
    for copied in (model, copy.deepcopy(model)):
        torch.manual_seed(1)
        output = copied(images)
        state = torch.get_rng_state()
        assert torch.equal(output.mask.bool(), expected.mask)
        torch.manual_seed(1)
        torch.rand(4, 16)
        assert torch.equal(state, torch.get_rng_state())
    assert seen == [1, 1], "once per step of the model and its copy"
    assert model.config.mask_ratio == 0.75
    assert list(model.state_dict()) == list(mae().state_dict())


def test_own_features_of_models_that_see_all_positions(images: torch.Tensor) -> None:
    for stock in (simmim(), deit()):
        masking = DPPMasking(tau=0.0, features="encoder")
        model = wrap(copy.deepcopy(stock), masking=masking)
        stock.eval()

        def tokens(images: torch.Tensor, stock: PreTrainedModel = stock) -> torch.Tensor:
            return stock.base_model(images).last_hidden_state[:, -16:]

        given: list[torch.Tensor] = []
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs, given=given: given.append(kwargs["bool_masked_pos"]),
            with_kwargs=True,
        )
        torch.manual_seed(1)
        model(images)
        torch.manual_seed(1)
        expected = DPPMasking(tau=0.0, features=tokens)(images, mask_ratio=0.6, patch_size=8)
        assert len(given) == 1
        assert torch.equal(given[0], expected.mask)
