"""The data of the study: CIFAR as it comes, or a split of a folder of images, made of links."""

from collections.abc import Iterator
from pathlib import Path

from command_line import Refused
from data import CIFAR, load_cifar
from images import list_images
from study_plan import Preset


def prepare_data(preset: Preset, data: Path, out: Path) -> Path:
    """The folder for `main.py`'s --dataroot, with all that the runs need in it.

    Raises:
        Refused: `data` lacks something, or `out` holds a split of other data.
    """
    if preset.dataset in CIFAR:
        load_cifar(preset.dataset, data, with_train=True)  # so that it is downloaded once
        return data
    classes, images = preset.split
    return link_split(data, out / f"split-{classes}x{images}", classes, images)


def link_split(data: Path, folder: Path, classes: int, images: int) -> Path:
    """Make `folder`, a split of the first `classes` classes of `data` by name; returns it.

    The first `images` of each in `data`/train, by name, are in `folder`/train; all others of
    these classes, those in `data`/val too, in `folder`/test. It holds links only.
    """
    links = dict(split(data.resolve(), classes, images))
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
        raise Refused(f"{folder}: holds another split than that of {data}; remove it")
    return folder


def split(data: Path, classes: int, images: int) -> Iterator[tuple[str, Path]]:
    """Each file of the split: its place there, and where it really is."""
    train, val = list_images(data / "train"), list_images(data / "val")
    if len(train.classes) < classes:
        raise Refused(f"--data {data}: {len(train.classes)} classes in train/, expected {classes}")
    count = [0] * classes
    for path, label in zip(train.paths, train.labels, strict=True):
        if label < classes:
            part = "train" if count[label] < images else "test"
            count[label] += 1
            yield f"{part}/{path.relative_to(data / 'train')}", path
    for name, found in zip(train.classes, count, strict=False):
        if found <= images:
            raise Refused(
                f"--data {data}: {found} images in train/{name}, expected more than {images}, "
                "some to train on and others to test with"
            )
    for path, label in zip(val.paths, val.labels, strict=True):
        name = val.classes[label]
        if name in train.classes[:classes]:
            yield f"test/{name}/val/{path.relative_to(data / 'val' / name)}", path
