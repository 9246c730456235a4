"""Export a backbone: to a file, or to a folder that timm and the Hugging Face Hub take as it is."""

import json
import math
import os
import tempfile
from pathlib import Path

import torch

import resnet
from augmentation import resized_side
from batches import IMAGENET_MEAN, IMAGENET_STD
from common.checkpoint import save_weights
from common.command_line import UserError, one_line, plural
from common.logs import LOG, read_log
from data import imagenet_synsets
from flags import Config
from weights import PROGRAM, WEIGHTS_FILE, Weights, build_network

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
PAPER = "[Deeply-supervised Knowledge Synergy](https://arxiv.org/abs/1906.00675) (CVPR 2019)"
METHODS = {
    "baseline": f"Trained without auxiliary branches, as the baseline of {PAPER}.",
    "ds": "Trained with deep supervision: auxiliary branches learned from the labels too. It is "
    f"compared with DKS in {PAPER}.",
    "dks": f"Trained with {PAPER}, DKS: auxiliary branches learned from the labels, and all "
    "classifiers from each other.",
}
# In the card's table of options. Others are too, if they differ from the defaults.
ESSENTIAL = ("method", "init", "image_size", "augmentation", "epochs", "batch_size", "lr")
ESSENTIAL += ("lr_schedule", "milestones", "lr_factor", "momentum", "weight_decay", "ema", "dtype")
ESSENTIAL += ("seed",)


def export(weights: Weights, arch: str, image_size: int | None, path: Path) -> None:
    """Write the backbone to `path`; its suffix decides whether that is a file or a folder.

    Args:
        weights: of the network. The names of the parameters become torchvision's.
        arch: name of the network.
        image_size: side in pixels of the images that it is for, if it is known.
        path: the file to write, or the folder to create.

    Raises:
        UserError: the path exists or can't be written, or timm does not have the network.
    """
    names = ("arch", "classes", "image_size", "dtype")
    known = {name: weights.metadata[name] for name in names if name in weights.metadata}
    metadata = {"image_size": image_size} | known | {"program": PROGRAM, "arch": arch}
    build_network(arch, weights, branches=False)  # checks that they fit
    if path.suffix in FILE_SUFFIXES:
        save_weights(path, weights.backbone, metadata)
    elif arch not in resnet.NETWORKS:
        raise UserError(
            f"--export {path}: a folder needs one of {', '.join(resnet.NETWORKS)}, not {arch}; "
            f"give a file, such as {path.name}.safetensors"
        )
    elif path.exists():
        raise UserError(f"--export {path}: exists already; choose another name")
    else:
        export_folder(weights, metadata, path)
    averaged = " (averaged weights)" if weights.averaged else ""
    print(f"exported the backbone{averaged} to {path}")


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
    names = metadata.get("classes") or (imagenet_synsets() if num_classes == 1000 else None)
    size = metadata["image_size"] or 224
    return {
        "architecture": metadata["arch"],  # timm's names of these networks are torchvision's
        "num_classes": num_classes,
        "num_features": num_features,
        "global_pool": "avg",
        **({"label_names": names} if names else {}),
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": crop_fraction(size),
            "crop_mode": "squash",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "pool_size": [math.ceil(size / 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def crop_fraction(image_size: int) -> float:
    """Return the `crop_pct` for which timm resizes images to the same side as we do.

    timm rounds `image_size / crop_pct` down, and `resized_side` rounds to the nearest integer.
    """
    side = resized_side(image_size)
    # The exact fraction can come out just below `side`; the last one never does.
    fractions = (224 / 256, image_size / side, image_size / (side + 0.5))
    return next(f for f in fractions if math.floor(image_size / f) == side)


CARD_HEADER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- pytorch
---
"""


def model_card(name: str, config: dict, weights: Weights) -> str:
    """Return the model card of an exported folder: Markdown with a YAML header."""
    arch, size = config["architecture"], config["pretrained_cfg"]["input_size"][-1]
    options, data = weights.content.get("options"), weights.content.get("data")
    is_run = isinstance(options, dict) and isinstance(data, dict)
    unknown = "Not known: the weights are not from a checkpoint of `train.py`."
    about = METHODS.get(options.get("method"), "") if is_run else ""
    return f"""{CARD_HEADER}
# {name}

A `{arch}` that classifies images of {size}×{size} pixels into \
{plural(config["num_classes"], "class")}. {about}
These files hold the backbone alone, without auxiliary branches, under the parameter names of
torchvision and timm. `label_names` in `config.json` are the classes, if they are known.

## Training

{describe_training(weights, options, data) if is_run else unknown}

## Errors

{describe_errors(weights) if is_run else unknown}

## Use

```python
import timm

network = timm.create_model("local-dir:{name}", pretrained=True).eval()
options = timm.data.resolve_model_data_config(network)
transform = timm.data.create_transform(**options)  # from an RGB image of PIL to a tensor
```

The preprocessing resizes images to a square of {resized_side(size)} pixels with bicubic
interpolation, ignoring the aspect ratio, crops the center {size} pixels, and normalizes.

## Limits

Every image gets one of these classes, whatever it shows. The errors are those of one run, on these
images. This card names no license: before you publish the files, add one that the images allow.
"""


def describe_training(weights: Weights, options: dict, data: dict) -> str:
    """Return a paragraph about the images, and a table of options."""
    defaults = Config().to_dict()
    hidden = {*Config.names("local"), "data", "val_labels", "arch"} - {"compile"}
    names = [name for name in ESSENTIAL if name in options]
    names += [
        name
        for name, value in options.items()
        if name not in (*names, *hidden) and value != defaults.get(name, value)
    ]
    rows = "\n".join(f"| `--{n.replace('_', '-')}` | {show(n, options[n])} |" for n in names)
    return (
        f"{plural(data['train_images'], 'training image')} of {plural(data['classes'], 'class')}, "
        f"{plural(data['test_images'], 'test image')}; the hash of their names is "
        f"`{data['identity']}`. Options of `train.py` that are not listed have their defaults or "
        "do not change the result.\n\n"
        f"| option | value |\n|---|---|\n{rows}\n\n"
        f"{plural(weights.content['epoch'], 'epoch')} and {plural(weights.content['step'], 'step')}"
        f" were done by {plural(weights.content['processes'], 'process')}; exported with PyTorch "
        f"{torch.__version__}."
    )


def show(name: str, value: object) -> str:
    """Return an option's value as text. Of paths only the last part, which others may know."""
    if name == "init":
        return f"`{Path(str(value)).name}`" if value else "none: random weights"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def describe_errors(weights: Weights) -> str:
    """Return a table of the errors of exactly these weights, from the log beside the checkpoint."""
    log = Path(weights.source).with_name(LOG)
    same = ("step", weights.content["step"]), ("options", weights.content["options"])
    records = read_log(log) if log.is_file() else []
    record = next((r for r in records if all(r.get(key) == value for key, value in same)), {})
    scores = record.get("ema" if weights.averaged else "test")
    if not scores:
        return "Not known: there is no record for exactly these weights in the log of the run."
    kind = "averaged weights" if weights.averaged else "last weights"
    return (
        f"Of the backbone with the {kind}, on {plural(scores['images'], 'test image')} after epoch "
        f"{record['epoch']} of {record['options']['epochs']}: **top-1 error "
        f"{scores['top1_errors'][0]:.2f} %, top-5 error {scores['top5_errors'][0]:.2f} %**."
    )
