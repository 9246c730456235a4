"""Checkpoints: written atomically, loaded safely and strictly.

A checkpoint is a dict of tensors and plain Python values, saved with `torch.save`.
"""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from .command_line import UserError, one_line
from .distributed import print_once
from .files import write_atomically


def save(path: Path, content: dict) -> None:
    """Save a checkpoint atomically; see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(content, file))


def load(path: Path) -> dict:
    """Load a dict saved by `torch.save` to the CPU, without running code from the file.

    The CRCs of the zip archive are verified first, because `torch.load` ignores them and would
    load corrupted weights. Files from before PyTorch 1.6 are not zip archives and have no CRCs.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint, or it contains objects other
            than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    try:
        check_zip_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # print nothing besides the one-line error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        # A text that is unpickled raises KeyError or struct.error, whose messages say nothing.
        known = isinstance(error, (OSError, RuntimeError, MemoryError))
        reason = one_line(error, 150) if known else "it contains code or is not a checkpoint"
        raise UserError(
            f"{path} can't be loaded as a checkpoint: {reason}; use an undamaged file that "
            "contains only tensors and plain values"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a dict in the checkpoint, found {type(content).__name__}"
        )
    return content


def check_zip_archive(path: Path) -> None:
    """Raise `UserError` if a zip archive is truncated or fails its CRCs; ignore other files."""
    with open(path, "rb") as file:
        starts_as_zip = file.read(4) == b"PK\x03\x04"
    if not zipfile.is_zipfile(path):
        if starts_as_zip:
            raise UserError(f"{path} is damaged: the file is truncated; use another copy of it")
        return
    with zipfile.ZipFile(path) as archive:
        # torch.save does not compress. A compressed file could expand without limit.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{path} is a compressed zip file, which torch.save never writes")
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path} is damaged: {damaged} fails its CRC; use another copy of it")


def require_keys(content: dict, types: dict[str, type], source: Path) -> None:
    """Raise `UserError` if a checkpoint lacks one of the keys or its value has another type."""
    for key, expected in types.items():
        if not isinstance(content.get(key), expected):
            found = type(content[key]).__name__ if key in content else "nothing"
            raise UserError(
                f"{source}: expected {expected.__name__} under the key {key!r}, found {found}; "
                "is it a checkpoint of this program?"
            )


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load a state dict strictly: the same keys and shapes, and finite values only.

    Floating-point tensors of another precision are cast, and a line about it is printed.
    `source` is the file that the weights come from, for messages.

    Raises:
        UserError: the state dict does not fit; the message names the first such keys.
    """
    expected = model.state_dict()
    for problem, names in (
        ("missing", [name for name in expected if name not in weights]),
        ("unexpected", [name for name in weights if name not in expected]),
    ):
        if names:
            raise UserError(
                f"{source} does not fit the network: {problem} keys {abbreviate(names)}"
            )
    for name, tensor in expected.items():
        problem = mismatch(weights[name], tensor)
        if problem:
            raise UserError(f"{source} can't be used: {name} {problem}")
    report_cast([n for n, tensor in expected.items() if weights[n].dtype != tensor.dtype], source)
    model.load_state_dict(weights)


def mismatch(value: object, expected: Tensor) -> str:
    """Describe why `value` can't replace the tensor `expected`; return "" if it can."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return f"is not a dense tensor but {type(value).__name__}"
    if value.shape != expected.shape:
        return f"has shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
    if value.is_floating_point() != expected.is_floating_point() or value.is_complex():
        return f"has dtype {value.dtype}, expected {expected.dtype}"
    # In chunks, because isfinite allocates more memory than its input.
    if not all(chunk.isfinite().all() for chunk in torch.atleast_1d(value).chunk(16)):
        return "contains values that are not finite"
    return ""


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, source: Path) -> None:
    """Load the buffers of an optimizer's state dict as strictly as `load_weights`.

    The optimizer keeps its own hyperparameters; its buffers must already be initialized.

    Raises:
        UserError: the state belongs to another optimizer or to other parameters.
    """
    expected = optimizer.state_dict()  # holds the optimizer's own tensors, not copies
    cast, pairs = [], []
    try:
        check_optimizer_keys(state, expected)
        for index, buffers in expected["state"].items():
            for name, buffer in buffers.items():
                value = state["state"][index][name]
                if problem := mismatch(value, buffer):
                    raise ValueError(f"{name} of parameter {index} {problem}")
                if value.dtype != buffer.dtype:
                    cast.append(f"{name} of parameter {index}")
                pairs.append((buffer, value))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} can't be resumed: its optimizer state does not fit ({one_line(error, 150)})"
        ) from error
    report_cast(cast, source)
    for buffer, value in pairs:
        buffer.copy_(value)  # keeps the buffer's memory format, which fused kernels rely on


def check_optimizer_keys(state: dict, expected: dict) -> None:
    """Raise `ValueError` if two optimizer state dicts differ in parameters or buffer names."""
    groups = [[group["params"] for group in each["param_groups"]] for each in (state, expected)]
    if state.keys() != expected.keys() or groups[0] != groups[1]:
        raise ValueError("it has other parameters")
    names = [{i: set(buffers) for i, buffers in s["state"].items()} for s in (state, expected)]
    if names[0] != names[1]:
        raise ValueError("buffers are missing or unexpected")


def report_cast(names: list[str], source: Path) -> None:
    if names:
        print_once(f"{source}: cast to the dtype of the network: {abbreviate(names)}")


def abbreviate(names: list[str], limit: int = 3) -> str:
    """Join the first `limit` names for a message and count the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
