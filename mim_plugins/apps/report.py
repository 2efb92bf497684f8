"""A report on MAE and SimMIM checkpoints: what did their masking make them learn?

    python -m mim_plugins report WORK_DIR [WORK_DIR ...] --data FOLDER --out report

Each run is a work directory of mmpretrain's ``tools/train.py``, or ``config.py=checkpoint.pth``.
``--data`` is a folder of class folders with images. Writes ``report.html``, ``.md``, ``.json``
and pictures: scores of unmasked reconstructions (Kong et al., CVPR 2023, section 3.1),
attention of [CLS] and of a chosen patch (3.2), t-SNE and linear separability (3.3), and how
high the latents sit that each run's own masks locate (2.3).
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import torch
from jinja2 import Template
from mmengine.runner import set_random_seed
from torch import Tensor
from tqdm import tqdm

from .._check import check_int
from .._observe import observing
from .._pool import pool
from .._tensor import check_device
from ..analysis import (
    attention_map,
    effective_rank,
    last_layer_attention,
    linear_separability,
    plot_attention,
    plot_embeddings,
    reconstruction_scores,
    tsne,
)
from ..analysis._figure import new_figure, picture_grid
from ..analysis.observed_masks import ObservedMasks
from ..mmpretrain.analysis.reconstruction import reconstruct
from ..mmpretrain.encoders import num_prefix_tokens
from . import command_parser, markdown_table
from .checkpoints import (
    Run,
    draw_masks,
    find_run,
    image_size,
    load_model,
    preprocess,
    read_config,
)
from .images import class_folders, drop_unreadable, list_images, load_images

COLUMNS = {
    "mask_ratio": ("mask ratio", 2),
    "height": ("height of located latents", 2),
    "mse": ("MSE", 4),
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 3),
    "fsim": ("FSIM", 3),
    "separability": ("linear accuracy", 3),
    "effective_rank": ("effective rank", 1),
}


def find_images(folder: Path, limit: int) -> tuple[list[Path], list[str]]:
    """Paths of at most ``limit`` images, as many of each class, and their classes.

    Raises:
        ValueError: If the folder does not hold class folders with images.
    """
    names = class_folders(folder)
    each = max(1, limit // max(1, len(names)))
    paths = drop_unreadable([p for name in names for p in list_images(folder / name)[:each]])
    classes = [path.relative_to(folder).parts[0] for path in paths]
    if len(set(classes)) < 2 or len(paths) < 4:
        raise ValueError(
            "data must be a folder of at least 2 class folders with images, 4 in all, got "
            f"{len(paths)} images of {len(set(classes))} classes in {folder}"
        )
    return paths, classes


class Findings(NamedTuple):
    """What is reported of one run; pictures of the first few images."""

    figures: dict[str, float]
    images: Tensor
    reconstruction: Tensor
    cls_map: Tensor | None
    token_map: Tensor | None
    token: tuple[int, int] | None
    embedding: Tensor


def analyse(
    run: Run,
    paths: list[Path],
    labels: Tensor,
    pictures: Tensor,
    place: tuple[float, float],
    device: str,
) -> Findings:
    """Measure one run on images.

    Args:
        run: The run.
        paths: Of n images.
        labels: ``(n,)`` long.
        pictures: Numbers of the images to show.
        place: Of the chosen patch, as shares of height and width.
        device: Where to compute.
    """
    config = read_config(run.config)
    model: Any = load_model(config, run.checkpoint, run.config).to(device)
    prefix = num_prefix_tokens(model.backbone)
    images = load_images(paths, image_size(model, config))
    observed = ObservedMasks(num_masks=len(paths))
    scores: dict[str, list[Tensor]] = {}
    batches = []
    set_random_seed(0)  # numpy's too, of which pipelines draw masks
    for batch in tqdm(images.split(32), desc=run.name, unit="batch"):
        inputs, _, mask = draw_masks(model, config, batch)
        observed.add(mask)
        with observing(model):
            for name, values in reconstruction_scores(*reconstruct(model, inputs)).items():
                scores.setdefault(name, []).append(values)
            batches.append(pool(model.extract_feat(inputs)[-1], num_prefix_tokens=prefix).cpu())
    report, features = observed.report(), torch.cat(batches)
    figures = {
        **{name: report[name] for name in ("mask_ratio", "height")},
        **{name: torch.cat(values).mean().item() for name, values in scores.items()},
        "effective_rank": effective_rank(features),
    }
    if labels.unique(return_counts=True)[1].min() >= 5:
        figures["separability"] = linear_separability(features, labels)
    with observing(model):
        inputs = preprocess(model, images[pictures])
        predicted, original = (each.cpu() for each in reconstruct(model, inputs))
        attention = _attention(model, inputs)
    cls_map = token_map = token = None
    if attention is not None:
        side = round((attention.shape[1] - prefix) ** 0.5)
        token = (min(int(place[0] * side), side - 1), min(int(place[1] * side), side - 1))
        token_map = attention_map(attention, (side, side), token, prefix)
        cls_map = attention_map(attention, (side, side), None, prefix) if prefix else None
    return Findings(figures, original, predicted, cls_map, token_map, token, tsne(features))


def _attention(model: Any, inputs: Tensor) -> Tensor | None:
    """``(B, L, L)``; None if the last layer does not look at whole images."""
    try:
        attention = last_layer_attention(model.backbone, lambda: model.extract_feat(inputs))
    except TypeError:
        return None
    return attention.cpu() if len(attention) == len(inputs) else None


def plot_scores(found: dict[str, Findings]) -> Any:
    """One panel per figure of :data:`COLUMNS`, a bar per run."""
    names = [name for name in COLUMNS if all(name in each.figures for each in found.values())]
    rows = -(-len(names) // 4)
    figure, axes = new_figure(rows, 4)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        values = [each.figures[name] for each in found.values()]
        axis.bar(range(len(found)), values, color=[f"C{i % 10}" for i in range(len(found))])
        axis.set_xticks(range(len(found)), list(found), rotation=30, ha="right", fontsize=7)
        axis.set_title(COLUMNS[name][0], fontsize=10)
    return figure


def rows(found: dict[str, Findings]) -> list[list[str]]:
    """Heading and one row per run."""
    table = [["run", *(title for title, _ in COLUMNS.values())]]
    for name, each in found.items():
        cells = (
            f"{each.figures[key]:.{digits}f}" if key in each.figures else "-"
            for key, (_, digits) in COLUMNS.items()
        )
        table.append([name, *cells])
    return table


# Names are text, whatever characters they have: all is escaped.
PAGE = Template(
    """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }}</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: auto; padding: 1em; color: #222 }
h2 { font-size: 1.2em; margin-top: 2em } img { max-width: 100% }
.wide { overflow-x: auto } code { overflow-wrap: anywhere }
table { border-collapse: collapse } td, th { padding: .3em .7em; border-bottom: 1px solid #ccc;
  text-align: right } td:first-child, th:first-child { text-align: left }
</style>
<h1>{{ title }}</h1><p>{{ intro }}</p><div class="wide"><table>
{% for row in rows %}<tr>{% set tag = "th" if loop.first else "td" -%}
{% for cell in row %}<{{ tag }}>{{ cell }}</{{ tag }}>{% endfor %}</tr>
{% endfor %}</table></div>
{% for name, text in pictures.items() -%}
<h2>{{ text }}</h2><img src="{{ name | urlencode }}.png" alt="{{ text }}">
{% endfor %}<h2>Runs</h2><ul>
{% for run in runs -%}
<li>{{ run.name }}: <code>{{ run.config }}</code>, <code>{{ run.checkpoint }}</code></li>
{% endfor %}</ul></html>
""",
    autoescape=True,
)


def page(
    title: str, intro: str, found: dict[str, Findings], pictures: dict[str, str], runs: list[Run]
) -> str:
    """The report as HTML."""
    return PAGE.render(title=title, intro=intro, rows=rows(found), pictures=pictures, runs=runs)


def write_report(
    found: dict[str, Findings], runs: list[Run], labels: Tensor, names: list[str], out: Path
) -> str:
    """Write pictures, ``report.{json,html,md}``; return the last one's text."""
    images = next(iter(found.values())).images
    made = [(name, each.reconstruction) for name, each in found.items()]
    pictures = {
        "scores": ("Figures of the table", plot_scores(found)),
        "reconstructions": (
            "Reconstructions with every patch visible and every patch predicted",
            picture_grid([("image", images), *made])[0],
        ),
        "tsne": (
            "t-SNE of the features ([CLS] where there is one), a colour per class",
            plot_embeddings(
                {name: each.embedding for name, each in found.items()},
                labels,
                names if len(names) <= 20 else None,
            ),
        ),
    }
    for key, title in (
        ("cls_map", "Attention of [CLS]"),
        ("token_map", "Attention of the patch in the red square"),
    ):
        maps = {n: getattr(f, key) for n, f in found.items() if getattr(f, key) is not None}
        tokens = {found[name].token for name in maps}
        for token in tokens:
            # Runs with different patch sizes have different grids, hence a picture for each.
            same = {n: m for n, m in maps.items() if found[n].token == token}
            suffix = "" if len(tokens) == 1 else "_" + "_".join(map(str, token or ()))
            mark = token if key == "token_map" else None
            pictures[f"{key}{suffix}"] = (
                f"{title}: last layer, averaged over heads",
                plot_attention(images, same, mark),
            )
    title = "What did masking make these models learn?"
    intro = (
        f"{len(labels)} images of {len(names)} classes. MSE, PSNR, SSIM and FSIM are of "
        "reconstructions without masking (patches normalised in training get the true patch's "
        "mean and variance), linear accuracy is logistic regression on the features, 5-fold "
        "cross-validated, and the height is that of the latents that the run's own masks locate "
        "in a quadtree over the patches (patches are observed at height 0)."
    )
    lines = [f"# {title}", "", intro, "", markdown_table(rows(found)), ""]
    for name, (text, figure) in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=90)
        lines += [f"## {text}", "", f"![{text}]({name}.png)", ""]
    titles = {name: text for name, (text, _) in pictures.items()}
    (out / "report.html").write_text(page(title, intro, found, titles, runs), encoding="utf-8")
    lines += ["## Runs", ""]
    lines += [f"- {run.name}: `{run.config}`, `{run.checkpoint}`" for run in runs]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text)
    figures = {name: each.figures for name, each in found.items()}
    (out / "report.json").write_text(json.dumps(figures, indent=2))
    return text


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", help="work directories, or config.py=checkpoint.pth")
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--limit", type=int, default=300, help="images in all")
    parser.add_argument("--pictures", type=int, default=5, help="images shown")
    parser.add_argument(
        "--token", type=float, nargs=2, default=(0.5, 0.5), metavar=("DOWN", "RIGHT"),
        help="place of the chosen patch, in [0, 1]; default: the middle",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    try:
        check_int("limit", args.limit)
        check_int("pictures", args.pictures)
        if not all(0.0 <= share <= 1.0 for share in args.token):
            raise ValueError(f"token must be two numbers in [0, 1], got {args.token}")
        check_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=args.out).close()  # it can be written into: rather now than at the end
        runs = [find_run(argument) for argument in args.runs]
        if len({run.name for run in runs}) < len(runs):
            runs = [run._replace(name=f"{i}: {run.name}") for i, run in enumerate(runs, start=1)]
        paths, classes = find_images(args.data, args.limit)
        names = sorted(set(classes))
        labels = torch.tensor([names.index(name) for name in classes])
        pictures = torch.linspace(0, len(paths) - 1, min(args.pictures, len(paths))).long()
        found = {
            run.name: analyse(run, paths, labels, pictures, tuple(args.token), args.device)
            for run in runs
        }
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # names are names
        print(write_report(found, runs, labels, names, args.out).split("## ")[0])
    print(f"Report: {args.out / 'report.html'}")
    return 0
