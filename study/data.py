"""The data of the study: CIFAR as it is, or a split of a folder of images, made of links."""

from collections.abc import Iterator
from pathlib import Path

from common.command_line import UserError
from common.images import list_images
from data import CIFAR, load_cifar
from study.plan import Preset, Row


def prepare_data(preset: Preset, row: Row, data: Path, out: Path) -> Path:
    """Return the folder for `main.py`'s --dataroot, with everything that the row's runs need.

    Raises:
        UserError: `data` lacks something, or `out` holds a split of other data.
    """
    if preset.dataset in CIFAR:
        load_cifar(preset.dataset, data, with_train=True)  # downloads it once for all runs
        return data
    num_classes, images = preset.split
    offset = f"-from-{row.first_class + 1}" if row.first_class else ""
    folder = out / f"split-{num_classes}x{images}{offset}"
    return link_split(data, folder, row.first_class, num_classes, images)


def link_split(data: Path, folder: Path, first: int, num_classes: int, images: int) -> Path:
    """Make `folder`, a split of `num_classes` classes of `data` by name; return it.

    The classes are those from number `first` on, counted from 0.

    The first `images` of each class in `data`/train, by name, go to `folder`/train. All other
    images of these classes, including those in `data`/val, go to `folder`/test. The folder
    contains only links.
    """
    links = dict(split_links(data.resolve(), first, num_classes, images))
    if not folder.exists():
        building = folder.with_name(folder.name + ".building")
        for name, target in links.items():
            link = building / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        building.rename(folder)
    paths = [path for path in folder.rglob("*") if path.is_symlink()]
    if {str(path.relative_to(folder)): path.readlink() for path in paths} != links:
        raise UserError(f"{folder}: not the split of {data}; remove this folder")
    return folder


def split_links(
    data: Path, first: int, num_classes: int, images: int
) -> Iterator[tuple[str, Path]]:
    """Yield the links of the split: relative path and target."""
    train, val = list_images(data / "train"), list_images(data / "val")
    if len(train.classes) < first + num_classes:
        raise UserError(
            f"--data {data}: {len(train.classes)} classes in train/, expected at least "
            f"{first + num_classes}"
        )
    count = dict.fromkeys(train.classes[first : first + num_classes], 0)
    for path, label in zip(train.paths, train.labels, strict=True):
        name = train.classes[label]
        if name in count:
            part = "train" if count[name] < images else "test"
            count[name] += 1
            yield f"{part}/{path.relative_to(data / 'train')}", path
    for name, found in count.items():
        if found <= images:
            raise UserError(
                f"--data {data}: {found} images in train/{name}, expected more than {images}; "
                "the rest are test images"
            )
    for path, label in zip(val.paths, val.labels, strict=True):
        name = val.classes[label]
        if name in count:
            yield f"test/{name}/val/{path.relative_to(data / 'val' / name)}", path
