"""Export a backbone: to a file, or to a folder that timm and the Hugging Face Hub take as it is."""

import json
import os
import tempfile
from pathlib import Path

from augmentation import resized_side
from batches import IMAGENET_MEAN, IMAGENET_STD
from common.checkpoint import save_weights
from common.command_line import FIXED, FREE, UserError, one_line, plural
from common.logs import LOG, read_log
from flags import Config
from weights import PROGRAM, WEIGHTS_FILE, Weights, build_network

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def export(weights: Weights, arch: str, image_size: int | None, path: Path) -> None:
    """Write the backbone to `path`; its suffix decides whether that is a file or a folder.

    `image_size` is the side in pixels of the images that it is for, if it is known. If the path
    exists or can't be written, it is a `UserError`.
    """
    metadata = {"image_size": image_size} | weights.metadata | {"program": PROGRAM, "arch": arch}
    build_network(arch, weights, branches=False)  # checks that they fit
    if path.suffix in FILE_SUFFIXES:
        save_weights(path, weights.backbone, metadata)
    elif path.suffix and not path.suffix[1:].isdigit():  # but a folder may be r50-v1.0
        expected = f"a file that ends in {', '.join(FILE_SUFFIXES)}, or a folder without an ending"
        raise UserError(f"--export {path}: expected {expected}")
    elif path.exists():
        raise UserError(f"--export {path}: exists already; choose another name")
    else:
        export_folder(weights, metadata, path)
    print(f"exported the backbone{' (averaged weights)' * weights.averaged} to {path}")


def export_folder(weights: Weights, metadata: dict, path: Path) -> None:
    """Create a folder with the weights, timm's configuration and a model card, all at once."""
    config = timm_config(weights, metadata)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
            folder = Path(temporary) / path.name
            folder.mkdir()  # unlike the temporary folder, with the user's default permissions
            save_weights(folder / WEIGHTS_FILE, weights.backbone, metadata)
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            card = model_card(path.resolve().name, config, weights)
            (folder / "README.md").write_text(card, "utf-8", "backslashreplace")
            os.rename(folder, path)
    except OSError as error:
        raise UserError(f"--export {path}: can't be written ({one_line(error, 150)})") from error


def timm_config(weights: Weights, metadata: dict) -> dict:
    """Return the `config.json` from which timm builds the network and its preprocessing."""
    num_classes, num_features = weights.state["fc.weight"].shape
    size = metadata["image_size"] or 224
    return {
        "architecture": metadata["arch"],  # timm's names of these networks are torchvision's
        "num_classes": num_classes,
        "num_features": num_features,
        **({"label_names": weights.classes} if weights.classes else {}),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": crop_fraction(size),
            "crop_mode": "squash",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def crop_fraction(size: int) -> float:
    """Return the `crop_pct` for which timm, which rounds down, resizes to the same side as we."""
    side = resized_side(size)
    return next(f for f in (224 / 256, size / (side + 0.5)) if int(size / f) == side)


CARD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- pytorch
---

# {name}

A `{arch}` that classifies images of {size}×{size} pixels into {classes}: the backbone alone,
without the auxiliary branches of [Deeply-supervised Knowledge
Synergy](https://arxiv.org/abs/1906.00675) (CVPR 2019).
`label_names` in `config.json` are the classes, if they are known.

## Training

{training}

## Errors

{errors}

This card names no license: before you publish the files, add one that the images allow.
"""


def model_card(name: str, config: dict, weights: Weights) -> str:
    """Return the model card of an exported folder: Markdown with a YAML header."""
    training = errors = "Not known: the weights are not from a checkpoint of `train.py`."
    if all(isinstance(weights.content.get(key), dict) for key in ("options", "data")):
        training, errors = describe_training(weights.content), describe_errors(weights)
    return CARD.format(
        name=name,
        arch=config["architecture"],
        size=config["pretrained_cfg"]["input_size"][-1],
        classes=plural(config["num_classes"], "class"),
        training=training,
        errors=errors,
    )


def describe_training(content: dict) -> str:
    """Return a line about the images, and a table of the options that decide the result."""
    options, data = dict(content["options"]), content["data"]
    options["init"] = Path(options["init"]).name or "none: random weights"  # paths are private
    text = (
        f"{plural(data['train_images'], 'training image')} of {plural(data['classes'], 'class')}, "
        f"{plural(data['test_images'], 'test image')}; their hash is "
        f"`{data['identity']}`. Training took {plural(content['epoch'], 'epoch')} in "
        f"{plural(content['processes'], 'process')}.\n\n| option | value |\n|---|---|"
    )
    for name in Config.names(FIXED, FREE):
        if name in options and name not in ("data", "val_labels"):
            text += f"\n| `--{name.replace('_', '-')}` | {options[name]} |"
    return text


def describe_errors(weights: Weights) -> str:
    """Return the errors of exactly these weights, from the log beside the checkpoint."""
    log = Path(weights.source).with_name(LOG)
    same = {name: weights.content[name] for name in ("step", "options")}
    records = read_log(log) if log.is_file() else []
    record = next((each for each in records if same.items() <= each.items()), {})
    scores = record.get("ema" if weights.averaged else "test")
    if not scores:
        return "Not known: there is no record for exactly these weights in the log of the run."
    kind = "averaged weights" if weights.averaged else "last weights"
    return (
        f"Of the backbone with the {kind}, on {plural(scores['images'], 'test image')} after epoch "
        f"{record['epoch']} of {record['options']['epochs']}: **top-1 error "
        f"{scores['top1_errors'][0]:.2f} %, top-5 error {scores['top5_errors'][0]:.2f} %**."
    )
