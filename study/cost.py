"""The cost of each row of the study: measured time, counted memory and multiply-adds."""

from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from common import metrics
from study.logs import Study
from study.plan import Preset, Row
from synergy import SynergyLoss
from wide_resnet import DROPOUT, WideResNet

BYTES_PER_FLOAT32 = 4  # weights, gradients and momentum are float32 for every dtype
COLUMNS = (
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


def cost_rows(study: Study, preset: Preset) -> list[tuple[str, ...]]:
    """Return the cells under `COLUMNS`, one line per row: cost of training and of inference.

    The peak memory of a process on a CPU is mostly PyTorch's own, so memory is also counted.
    """
    rows = {row.name: row for row in preset.reported_rows}
    lines = []
    for name, runs in study.items():
        row = rows[name]
        epochs = [record for run in runs.values() for record in run.epochs]
        num_classes = next(iter(runs.values())).options["num_classes"]
        trained, used = (
            metrics.cost(
                partial(build_network, preset, row, num_classes, branches), preset.image_size
            )
            for branches in (row.method != "baseline", False)
        )
        kept = kept_for_backward(preset, row, num_classes)
        lines.append(
            (
                name,
                f"{median(record['train_time'] for record in epochs):.2f}",
                f"{max(record['peak_memory_mib'] for record in epochs):.0f}",
                f"{kept / 2**20:.1f}",
                f"{3 * BYTES_PER_FLOAT32 * trained.parameters / 2**20:.1f}",
                *(f"{size.parameters:,}" for size in (trained, used)),
                *(f"{size.multiply_adds:,}" for size in (trained, used)),
            )
        )
    return lines


def build_network(preset: Preset, row: Row, num_classes: int, branches: bool) -> nn.Module:
    dropout = DROPOUT if row.dropout else 0.0
    return WideResNet(preset.depth, preset.width, num_classes, dropout, branches=branches)


def kept_for_backward(preset: Preset, row: Row, num_classes: int) -> int:
    """Return the bytes that the forward pass of a step keeps, without weights; counted on a CPU.

    Extrapolated from batches of two and four images: each image adds the same number of bytes.
    """
    model = build_network(preset, row, num_classes, row.method != "baseline").train()
    two, four = (saved_bytes(model, row, size, preset.image_size) for size in (2, 4))
    return two + (preset.batch_size - 2) * (four - two) // 2


def saved_bytes(model: nn.Module, row: Row, batch_size: int, image_size: int) -> int:
    """Return the bytes of the distinct tensors that autograd saves for a batch."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is reused

    def save(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            saved[address] = tensor
        return tensor

    dtype, loss = getattr(torch, row.dtype), SynergyLoss(row.method, row.direction)
    images = torch.zeros(batch_size, 3, image_size, image_size)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        loss(logits, torch.zeros(batch_size, dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
