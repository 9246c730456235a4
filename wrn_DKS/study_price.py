"""What each row of the study costs: time as measured, memory and multiply-adds as counted."""

from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from command_line import DTYPES
from metrics import cost
from study_log import Study
from study_plan import Preset, Row
from synergy import SynergyLoss
from wide_resnet import DROPOUT, WideResNet

FLOAT32 = 4  # bytes: of weights, gradients and momentum in every dtype
TITLES = (
    "row",
    "training, s an epoch (median)",
    "process's peak, MiB",
    "kept for backward, MiB",
    "weights, gradients, momentum, MiB",
    "parameters, trained",
    "used",
    "multiply-adds an image, trained",
    "used",
)


def price(study: Study, preset: Preset) -> list[tuple[str, ...]]:
    """Under `TITLES`, a line a row: what training takes, and the network then and in use.

    On a CPU, the peak of the process is mostly PyTorch's own; so memory is counted as well.
    """
    rows = {row.name: row for row in preset.rows}
    lines = []
    for name, runs in study.items():
        epochs = [record for run in runs.values() for record in run.epochs]
        classes = next(iter(runs.values())).options["num_classes"]
        build = partial(network, preset, rows[name], classes)
        trained, used = (cost(partial(build, branches), preset.image_size) for branches in
                         (rows[name].method != "baseline", False))  # fmt: skip
        kept = kept_for_backward(preset, rows[name], classes)
        lines.append(
            (
                name,
                f"{median(record['train_time'] for record in epochs):.2f}",
                f"{max(record['peak_memory_mib'] for record in epochs):.0f}",
                f"{kept / 2**20:.1f}",
                f"{3 * FLOAT32 * trained.parameters / 2**20:.1f}",
                *(f"{size.parameters:,}" for size in (trained, used)),
                *(f"{size.multiply_adds:,}" for size in (trained, used)),
            )
        )
    return lines


def network(preset: Preset, row: Row, classes: int, branches: bool) -> nn.Module:
    dropout = DROPOUT if row.dropout else 0.0
    return WideResNet(preset.depth, preset.width, classes, dropout, branches=branches)


def kept_for_backward(preset: Preset, row: Row, classes: int) -> int:
    """Bytes that the forward pass of a training step keeps, weights apart, counted on the CPU.

    From batches of two and of four images: what an image adds is the same for each.
    """
    model = network(preset, row, classes, row.method != "baseline").train()
    two, four = (saved_bytes(model, row, batch, preset.image_size) for batch in (2, 4))
    return two + (preset.batch_size - 2) * (four - two) // 2


def saved_bytes(model: nn.Module, row: Row, batch: int, image_size: int) -> int:
    """Bytes of the different tensors that autograd saves for this many images."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # holds them, so that no place in memory is used twice

    def note(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            saved[place] = tensor
        return tensor

    dtype, loss = DTYPES[row.dtype], SynergyLoss(row.method, row.direction)
    images = torch.zeros(batch, 3, image_size, image_size)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        loss(logits, torch.zeros(batch, dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
