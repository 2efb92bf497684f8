import sys
from dataclasses import fields

import pytest
import torch

from mim_plugins.analysis import mask_graph, mask_tradeoff, plot_mask_tradeoff

IMAGES = torch.tensor([[0, 1, 2, 2], [0, 1, 1, 2], [3, 1, 2, 3], [3, 2, 2, 3]])
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("positions", [True, False])
def test_every_ratio_is_its_graph(positions: bool) -> None:
    sweep = mask_tradeoff(IMAGES, LABELS, dim=2, positions=positions)
    assert sweep.mask_ratio.tolist() == [0.25, 0.5, 0.75]
    for i, ratio in enumerate(sweep.mask_ratio.tolist()):
        graph = mask_graph(IMAGES, LABELS, ratio, positions)
        assert sweep.label_error[i] == graph.label_error
        assert sweep.target_label_error[i] == graph.target_label_error
        assert sweep.class_mixing[i] == graph.class_mixing
        assert sweep.residual[i] == graph.residual(2)
        assert sweep.components[i] == graph.num_components
        target = sweep.target_links_intra[i].item(), sweep.target_links_inter[i].item()
        assert target == graph.links("target")
        inputs = sweep.input_links_intra[i].item(), sweep.input_links_inter[i].item()
        assert inputs == graph.links("input")


def test_plot_shows_the_numbers() -> None:
    sweep = mask_tradeoff(IMAGES, LABELS, dim=2)
    figure = plot_mask_tradeoff({"first": sweep, "second": sweep})
    assert len(figure.axes) == 8
    shown = {tuple(line.get_ydata()) for axis in figure.axes[:4] for line in axis.get_lines()}
    for field in fields(sweep):
        if field.name not in ("mask_ratio", "components"):
            assert tuple(getattr(sweep, field.name).tolist()) in shown
    both = 2 * (sweep.label_error + sweep.target_label_error)
    assert tuple(both.tolist()) in shown
    assert figure.axes[4].get_ylabel() == "second"


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="dim must be at least 1"):
        mask_tradeoff(IMAGES, LABELS, dim=0)
    with pytest.raises(ValueError, match="at least one sweep"):
        plot_mask_tradeoff({})
    sweep = mask_tradeoff(IMAGES, LABELS, dim=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'mim_plugins\[analysis\]'"):
        plot_mask_tradeoff({"": sweep})
