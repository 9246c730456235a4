"""The model card of an exported backbone: what it is, its training, its errors, how to load it."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from common.command_line import plural
from common.run_logs import AVERAGED, BACKBONE, read_jsonl_record
from train_options import RESUME_MAY_CHANGE, parse
from training_run import TrainingRun

PAPER = "[Deeply-supervised Knowledge Synergy](https://arxiv.org/abs/1906.00675)"
METHODS = {
    "baseline": f"Trained without auxiliary branches, as the baseline of {PAPER} (CVPR 2019).",
    "ds": "Trained with deep supervision: auxiliary branches learned from the labels too. It is "
    f"compared with DKS in {PAPER} (CVPR 2019).",
    "dks": f"Trained with {PAPER} (DKS, CVPR 2019): auxiliary branches learned from the labels, "
    "and all classifiers from each other.",
}
# Always in the table of the recipe. Other options are, if they differ from the defaults.
ESSENTIAL = ("arch", "method", "init", "image_size", "augmentation", "epochs", "batch_size", "lr")
ESSENTIAL += ("lr_schedule", "milestones", "lr_factor", "momentum", "weight_decay", "ema", "dtype")
ESSENTIAL += ("seed",)
CHANGE_RESULT = {"sync_bn", "skip_unreadable", "compile"}  # though a resumed run may change them

HEADER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- pytorch
---
"""


def model_card(
    name: str, config: Mapping, parameters: int, source: str, run: TrainingRun | None
) -> str:
    """Return the card as Markdown with a YAML header.

    Args:
        name: of the exported folder.
        config: timm's configuration.
        parameters: number of parameters.
        source: where the weights come from.
        run: the training, if it is known.
    """
    arch, size = config["architecture"], config["pretrained_cfg"]["input_size"][-1]
    about = [
        f"# {name}",
        f"A `{arch}` with {parameters:,} parameters. It classifies images of {size}×{size} pixels "
        f"into {plural(config['num_classes'], 'class')}. The weights: {source}.",
        METHODS.get(run.options.get("method"), "") if run else "",
        "These files hold the backbone alone, without auxiliary branches, under the parameter "
        "names of torchvision and timm.",
    ]
    sections = [
        *about,
        "## Data",
        *describe_data(config, run),
        "## Recipe",
        describe_recipe(run),
        "## Errors",
        *describe_errors(config, run),
        "## Use",
        *describe_use(name, config),
        "## Limits",
        describe_limits(run),
    ]
    return HEADER + "\n" + "\n\n".join(filter(None, sections)) + "\n"


def describe_data(config: Mapping, run: TrainingRun | None) -> list[str]:
    """Return paragraphs about the images and classes."""
    names = "The names of the classes, in the order of the outputs, are `label_names` in "
    names += "`config.json`."
    if "label_names" not in config:
        names = "The names of the classes are not known."
    if run is None:
        return ["Not known: the weights are not from a checkpoint of `train.py`.", names]
    folder = Path(os.path.abspath(str(run.options.get("data")))).name
    text = f"{plural(run.images, 'training image')} of {plural(config['num_classes'], 'class')} "
    text += f"in the folder `{folder}`."
    if run.record:
        text += f" {plural(run.record['validation']['images'], 'validation image')}."
        unreadable = run.record["train"].get("unreadable", 0)
        text += f" In epoch {run.epoch}, {unreadable:,} could not be read." * (unreadable > 0)
        if fingerprint := run.record.get("data_fingerprint"):
            text += f" The hash of the names and sizes of all files is `{fingerprint}`."
    return [text, names]


def describe_recipe(run: TrainingRun | None) -> str:
    """Return a table of the options, or why there is none."""
    if run is None:
        return "Not known: the weights are not from a checkpoint of `train.py`."
    defaults = parse(["."]).with_milestones(None).to_dict()
    unlisted = {*ESSENTIAL, *RESUME_MAY_CHANGE} - CHANGE_RESULT
    unused = ("milestones", "lr_factor") if run.options.get("lr_schedule") == "cosine" else ()
    names = [name for name in ESSENTIAL if name in run.options and name not in unused]
    names += [
        name
        for name, value in run.options.items()
        if name not in unlisted and value != defaults.get(name, value)
    ]
    rows = "\n".join(f"| `--{n.replace('_', '-')}` | {show(n, run.options[n])} |" for n in names)
    done = "Options that change the result and are not listed have their defaults. "
    done += f"{plural(run.epoch, 'epoch')} and {plural(run.step, 'step')} were done by "
    done += f"{plural(run.processes, 'process')}. The export was made with PyTorch "
    done += f"{torch.__version__}."
    return f"| option of `train.py` | value |\n|---|---|\n{rows}\n\n{done}"


def show(name: str, value: object) -> str:
    """Return an option's value as text. Of paths only the last part, which others may know."""
    if name == "init":
        return f"`{Path(str(value)).name}`" if value else "none: random weights"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def describe_errors(config: Mapping, run: TrainingRun | None) -> list[str]:
    """Return paragraphs about the errors of this run, or why there are none."""
    if run is None:
        return ["Not known: the weights are not from a checkpoint of `train.py`."]
    if run.record is None:
        return ["Not known: there is no record for exactly these weights in the log of the run."]
    tested = read_jsonl_record(run.record).tested
    exported = AVERAGED if run.averaged else BACKBONE
    rows = [
        f"| {f'**{name}**' if name == exported else name} | {errors.top1:.2f} | {errors.top5:.2f} |"
        for name, errors in tested.items()
    ]
    table = "\n".join(["| | top-1 error | top-5 error |", "|---|---|---|", *rows])
    explanation = f"**These files hold the {exported}.** The other rows are not in them; the "
    explanation += "ensemble is the mean of the classifiers' probabilities."
    if run.averaged:
        explanation += f" All rows but “{AVERAGED}” are those of the last weights."
    if config["num_classes"] <= 5:
        explanation += " With five classes or fewer, the top-5 error is always 0."
    images = plural(run.record["validation"]["images"], "validation image")
    epochs = f"epoch {run.epoch} of {run.options['epochs']}"
    return [f"In percent, of the {images}, after {epochs}:", table, explanation]


def describe_use(name: str, config: Mapping) -> list[str]:
    """Return paragraphs that load the network, and its preprocessing."""
    arch, data = config["architecture"], config["pretrained_cfg"]
    size = data["input_size"][-1]
    return [
        f"""```python
import timm

network = timm.create_model("local-dir:{name}", pretrained=True).eval()
options = timm.data.resolve_model_data_config(network)
transform = timm.data.create_transform(**options)  # from an RGB image of PIL to a tensor
```""",
        f"""```python
import torchvision
from safetensors.torch import load_file

network = torchvision.models.{arch}(num_classes={config["num_classes"]})
network.load_state_dict(load_file("{name}/model.safetensors"))
network.eval()
```""",
        f"""In the folder `imagenet` of the code that wrote these files:

```
python main.py --model_path {name} DATA
python main.py --model_path {name} --predict IMAGE.jpg
```""",
        f"The preprocessing resizes images to a square of {int(size / data['crop_pct'])} pixels "
        f"with bicubic interpolation, ignoring the aspect ratio, crops the center {size} pixels, "
        "and normalizes with the mean and standard deviation in `config.json`. timm's transform "
        "gives the same pixels.",
    ]


def describe_limits(run: TrainingRun | None) -> str:
    """Return a list of what the numbers do not say."""
    limits = ["Every image gets one of these classes, whatever it shows."]
    if run:
        limits.append(
            f"This is one run, with one seed ({run.options.get('seed')}). Another seed gives other "
            "errors."
        )
    if run and run.record:
        images = run.record["validation"]["images"]
        limits.append(
            f"One validation image is {100 / images:.2g} % of all. The errors are those of these "
            "weights, not of the best epoch."
        )
    if run and run.options.get("init"):
        limits.append("Training started from other weights, whose data and license matter too.")
    limits.append("Nothing was measured on other images than those named above.")
    limits.append(
        "This card names no license; before you publish the files, add one to its header that the "
        "images allow."
    )
    return "\n".join(f"- {limit}" for limit in limits)
