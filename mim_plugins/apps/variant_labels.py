"""ImageNet-1K labels of images of ImageNet-V2, -R, -A, -Sketch and ObjectNet.

    python -m mim_plugins variant-labels data/imagenet/train data/imagenet-r

Writes ``meta/val.txt`` into the variant's folder, the annotation file of upstream's
``ImageNet`` data set. Their folders hold some of the classes, in their own order, so that
upstream's numbering of folders would be wrong.
"""

from __future__ import annotations

import json
from pathlib import Path

from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

from . import command_parser
from .images import EXTENSIONS, visible_folders


def imagenet_labels(imagenet: Path) -> dict[str, int]:
    """WordNet ids of ImageNet's 1000 class folders, numbered in order.

    Raises:
        ValueError: If there are not 1000 folders.
    """
    names = sorted(path.name for path in visible_folders(imagenet))
    if len(names) != 1000:
        raise ValueError(f"imagenet must hold 1000 class folders, got {len(names)} in {imagenet}")
    return {name: label for label, name in enumerate(names)}


def objectnet_labels(mappings: Path) -> dict[str, int]:
    """Labels of ObjectNet's folders that stand for exactly one class of ImageNet.

    Args:
        mappings: ObjectNet's folder ``mappings``.

    Raises:
        ValueError: If a class is called something unknown to mmpretrain.
    """
    names = json.loads((mappings / "folder_to_objectnet_label.json").read_text())
    classes = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text())
    numbers = {name: label for label, name in enumerate(IMAGENET_CATEGORIES)}
    labels = {}
    for folder, name in names.items():
        known = classes.get(name, "").split("; ")
        if len(known) > 1 or not known[0]:
            continue  # several classes, or none
        if known[0] not in numbers:
            raise ValueError(f"mappings name an unknown class of ImageNet, {known[0]!r}")
        labels[folder] = numbers[known[0]]
    return labels


def annotate(imagenet: Path, variant: Path) -> list[str]:
    """Lines ``path label`` for all images of a variant.

    Raises:
        ValueError: If its folders are neither WordNet ids, class numbers nor ObjectNet's.
    """
    images = variant / "images"
    if (variant / "mappings").is_dir():
        labels, prefix = objectnet_labels(variant / "mappings"), "images/"
    else:
        images, prefix = variant, ""
        labels = imagenet_labels(imagenet)
        labels |= {str(label): label for label in range(1000)}  # ImageNet-V2
    lines = []
    for folder in visible_folders(images):
        if folder.name == "meta":
            continue
        label = labels.get(folder.name)
        if label is None:
            if prefix:
                continue
            raise ValueError(f"variant has a folder of no class of ImageNet, {folder}")
        files = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
        lines += [f"{prefix}{folder.name}/{name} {label}" for name in files]
    if not lines:
        raise ValueError(f"variant must hold class folders with images, got {variant}")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("variant-labels", __doc__)
    parser.add_argument("imagenet", type=Path, help="folder of ImageNet-1K's 1000 class folders")
    parser.add_argument("variant", type=Path, help="folder of the variant")
    args = parser.parse_args(argv)
    try:
        lines = annotate(args.imagenet, args.variant)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    target = args.variant / "meta" / "val.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(lines) + "\n")
    print(f"{target}: {len(lines)} images")
