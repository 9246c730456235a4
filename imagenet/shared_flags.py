"""Flags that `main.py` and `train.py` have in common. Does not import torch."""

import os
from pathlib import Path

from common.command_line import DTYPES, UserError, bounded_number

# Networks with branches: the keys of `resnet.NETWORKS`, which would take seconds to import.
ARCHS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "wide_resnet50_2"),
)


def add_data(group, contents: str) -> None:
    group.add_argument(
        "data", metavar="DATA", type=Path, nargs="?", help=f"folder that contains {contents}"
    )
    group.add_argument("--dataroot", metavar="DIR", type=Path, help="the same as DATA")
    group.add_argument(
        "--val-labels",
        metavar="FILE",
        type=Path,
        help="label file for a val/ without class folders: Kaggle's LOC_val_solution.csv, or "
        "lines 'filename wnid'",
    )


def add_skip_unreadable(group, images: str) -> None:
    group.add_argument(
        "--skip-unreadable",
        action="store_true",
        help=f"skip and count {images} that cannot be read instead of stopping at the first",
    )


def add_workers(group, most: int) -> None:
    """Add the flag with a default of one worker per CPU core, `most` at most."""
    group.add_argument(
        "-j",
        "--workers",
        "--nthread",
        metavar="N",
        type=bounded_number(int, 0, 1024),
        default=min(most, os.cpu_count() or 1),
        help="data loading workers per process; 0 loads in the main process",
    )


def add_batch_size(group) -> None:
    group.add_argument(
        "-b",
        "--batch-size",
        metavar="N",
        type=bounded_number(int, 1),
        default=256,
        help="total batch size over all processes",
    )


def add_export(group, when: str) -> None:
    group.add_argument(
        "--export",
        metavar="FILE|DIR",
        type=Path,
        help=f"write the backbone for torchvision and timm {when}: a name that ends in .pth or .pt "
        "is a file of torch.save, .safetensors one of safetensors, and any other name a new folder "
        "for timm and the Hugging Face Hub, with a model card",
    )


def resolve_aliases(values: dict, script: str) -> dict:
    """Replace --dataroot by the data folder and the dtype by torch's name for it.

    Args:
        values: options of `script` by name.

    Raises:
        UserError: the data folder is given twice, or several GPUs without torchrun.
    """
    values = dict(values)
    dataroot, gpus = values.pop("dataroot"), values.pop("ngpu")
    if gpus > 1:
        raise UserError(
            f"--ngpu {gpus}: to use several GPUs, run torchrun --nproc_per_node {gpus} {script} …"
        )
    if dataroot and values["data"] not in (None, dataroot):
        raise UserError(
            f"--dataroot {dataroot}: the data folder is also given as {values['data']}; give one "
            "of them"
        )
    # One name for each dtype: `half` and `float16` are the same option when a run is resumed.
    return values | {"data": values["data"] or dataroot, "dtype": DTYPES[values["dtype"]]}
