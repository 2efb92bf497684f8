"""What a term is told, and what becomes of what it returns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mim_plugins.regularizers import (
    FeatureTerm,
    Step,
    Term,
    UniformityLoss,
    named_terms,
    term_losses,
)


class Mean(Term):
    name = "mean_token"

    def formula(self, step: Step) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return step.pooled("mean").mean()


class Parts(FeatureTerm):
    name = "parts"

    def of_features(self, features: Tensor) -> dict[str, Tensor]:
        return {"loss_first": features[0].sum(), "loss": features.sum(), "rows": features.sum()}


def test_pooled_leaves_removed_patches_out_wherever_they_are_seen() -> None:
    tokens = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]]).bool()
    for prefix in (1, 0):
        patches = torch.randn(2, 4, 3)
        everything = torch.cat([tokens[:, :prefix], patches], dim=1)
        kept = patches[~mask].view(2, 2, 3)
        visible = torch.cat([tokens[:, :prefix], kept], dim=1)
        for given in (everything, visible):
            step = Step(given, mask=mask, num_prefix_tokens=prefix)
            torch.testing.assert_close(step.pooled("mean"), kept.mean(dim=1))
            assert step.sees_removed == (given is everything)
            if prefix:
                assert torch.equal(step.pooled("cls"), tokens[:, 0])
    registers = torch.cat([tokens, patches], dim=1)
    step = Step(registers, mask=mask, num_prefix_tokens=5)
    torch.testing.assert_close(step.pooled("mean"), kept.mean(dim=1))
    assert torch.equal(step.pooled("cls"), tokens[:, 0])
    assert torch.equal(Step(tokens[:, 0], num_prefix_tokens=0).pooled("cls"), tokens[:, 0])


@pytest.mark.parametrize("told", [{"num_prefix_tokens": 0}, {"class_token": False}])
def test_there_is_no_class_token_to_take(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"token='cls' needs an encoder with \[CLS\]"):
        Step(torch.zeros(2, 4, 3), **told).pooled("cls")
    with pytest.raises(ValueError, match="uniformity has token='cls', but the encoder has no"):
        named_terms([UniformityLoss()], class_token=False)
    named_terms(
        [UniformityLoss(0.0), UniformityLoss(token="mean", name="other")], class_token=False
    )


def test_a_step_must_fit() -> None:
    with pytest.raises(TypeError, match="tokens must be a tensor, got list"):
        Step([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_prefix_tokens must be an int, got 1.0"):
        Step(torch.zeros(2, 3), num_prefix_tokens=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tokens must have shape \(3 \* B, P \+ K, D\) or"):
        Step(torch.zeros(4, 2, 3), num_masks=3)
    with pytest.raises(ValueError, match="token must be one of .*got 'auto'"):
        Step(torch.zeros(4, 2, 3)).pooled("auto")


def test_losses_are_weighted_and_named() -> None:
    tokens = torch.rand(4, 3, 2).double()
    terms = named_terms([Mean(0.5), Parts(2.0, token="mean"), Mean(0.0, name="off")])
    with torch.autocast("cpu", torch.bfloat16):
        losses = term_losses(terms, Step(tokens, num_masks=2))
    assert list(losses) == ["loss_mean_token", "loss_parts_first", "loss_parts", "parts_rows"]
    feature = tokens[:, 1:].mean(dim=1)
    first = (feature[0].sum() + feature[2].sum()) / 2
    torch.testing.assert_close(losses["loss_mean_token"], 0.5 * feature.mean())
    torch.testing.assert_close(losses["loss_parts_first"], 2 * first)
    torch.testing.assert_close(losses["loss_parts"], feature.sum())  # 2 times the mean of two
    torch.testing.assert_close(losses["parts_rows"], feature.sum() / 2)
    # called with tokens: the sum of what is added
    both = Parts(2.0, token="mean")(tokens, num_masks=2)
    torch.testing.assert_close(both, losses["loss_parts_first"] + losses["loss_parts"])


class Plain(nn.Module):
    """No Term: a name and a weight are enough."""

    def __init__(self, name: Any = "plain", **returned: Tensor) -> None:
        super().__init__()
        self.name, self.weight, self.returned = name, 1.0, returned

    def forward(self, step: Step) -> Any:
        return self.returned


def test_terms_must_have_a_weight_and_a_name_of_their_own() -> None:
    step = Step(torch.zeros(2, 3))
    assert term_losses(named_terms([Plain(rows=torch.ones(()))]), step) == {"plain_rows": 1}
    with pytest.raises(TypeError, match="must be modules with a weight, got 0.5"):
        named_terms([0.5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="must be modules with a weight, got Identity"):
        named_terms([nn.Identity()])
    with pytest.raises(TypeError, match="name of Linear must be a string, got None"):
        named_terms([nn.Linear(2, 2)])
    for name in ("my_loss", "a.b", ""):
        with pytest.raises(ValueError, match=f"identifier without 'loss' in it, got '{name}'"):
            named_terms([Plain(name)])
    with pytest.raises(ValueError, match="must have different names, got 'uniformity' twice"):
        named_terms([UniformityLoss(), UniformityLoss(token="mean")])
    with pytest.raises(ValueError, match="plain: a key with 'loss' must start so, got bare_loss"):
        term_losses(named_terms([Plain(bare_loss=torch.ones(()))]), step)
    with pytest.raises(TypeError, match="name of Term must be a string, got None"):
        Term()
