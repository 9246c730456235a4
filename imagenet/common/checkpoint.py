"""Checkpoints: written whole or not at all, read without running code, loaded strictly.

A checkpoint is a dict of tensors and plain Python values in torch.save's zip container.
"""

import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from .command_line import UserError, defer_signals, one_line
from .distributed import print_once


def save(path: Path, content: dict) -> None:
    """Write a checkpoint as `write_atomically` does."""
    write_atomically(path, lambda file: torch.save(content, file))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill `path` atomically: at any moment the old file or the new one is there.

    Signals wait: one that broke into torch's zip writer would come out of it as a RuntimeError.

    Raises:
        UserError: it can't be written (disk full, say); what was at `path` is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with defer_signals():
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns OSError into RuntimeError
        kept = "the previous one is whole; " if path.exists() else ""
        raise UserError(
            f"{path} can't be saved: {one_line(error, 150)}; {kept}"
            "free some space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> dict:
    """Read the dict that `torch.save` wrote to `path`, to the CPU, running none of its code.

    The zip container's CRCs are checked first, since torch.load doesn't: it would take a flipped
    bit for a weight. Files from before torch 1.6 are no zip and have none; they load unchecked.

    Raises:
        UserError: no such file, damaged, not a checkpoint, or holding more than tensors and
            plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    try:
        check_container(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refusal is one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        unsafe = "Unsupported" in str(error) or "WeightsUnpickler" in str(error)
        reason = "it holds code, or is no checkpoint" if unsafe else one_line(error, 150)
        raise UserError(
            f"{path} can't be loaded as a checkpoint: {reason}; use a whole file that holds "
            "only tensors and plain values"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a dict in the checkpoint, found {type(content).__name__}"
        )
    return content


def check_container(path: Path) -> None:
    """Refuse a zip file whose content does not match its CRCs, or that ends early."""
    with open(path, "rb") as file:
        starts_as_zip = file.read(4) == b"PK\x03\x04"
    if not zipfile.is_zipfile(path):
        if starts_as_zip:
            raise UserError(f"{path} is damaged: the file ends early; use another copy of it")
        return
    with zipfile.ZipFile(path) as archive:
        # torch stores its records uncompressed; a compressed one could swell without bound.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{path}: a compressed zip file, which torch.save does not write")
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path} is damaged: {damaged} fails its CRC; use another copy of it")


def require(content: dict, kinds: dict[str, type], source: Path) -> None:
    """Refuse a checkpoint that lacks one of the keys, or holds another type there."""
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            found = type(content[key]).__name__ if key in content else "nothing"
            raise UserError(
                f"{source}: expected {kind.__name__} under the key {key!r}, found {found}; "
                "is it a checkpoint of this program?"
            )


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load a state dict strictly: every key, every shape, finite floats.

    Floating-point tensors of another width are cast, which one printed line says.

    Raises:
        UserError: naming the first keys that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    for what, names in (
        ("lacks", [name for name in own if name not in weights]),
        ("has the unexpected", [name for name in weights if name not in own]),
    ):
        if names:
            raise UserError(f"{source} is of another network: it {what} {listing(names)}")
    for name, tensor in own.items():
        problem = difference(weights[name], tensor)
        if problem:
            raise UserError(f"{source} can't be used: {name} {problem}")
    cast = [name for name, tensor in own.items() if weights[name].dtype != tensor.dtype]
    report_cast(cast, source)
    model.load_state_dict(weights)


def difference(given: object, own: Tensor) -> str:
    """What keeps `given` from taking the place of the tensor `own`; empty if nothing does."""
    if not isinstance(given, Tensor) or given.layout != torch.strided:
        return f"is no dense tensor but {type(given).__name__}"
    if given.shape != own.shape:
        return f"has shape {tuple(given.shape)}, expected {tuple(own.shape)}"
    if given.is_floating_point() != own.is_floating_point() or given.is_complex():
        return f"is of type {given.dtype}, expected {own.dtype}"
    # In parts, since isfinite takes more memory than what it looks at.
    if not all(part.isfinite().all() for part in torch.atleast_1d(given).chunk(16)):
        return "holds values that are not finite"
    return ""


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, source: Path) -> None:
    """Load the buffers in an optimizer's state dict, strictly, as `load_weights` does weights.

    The hyperparameters stay the optimizer's own.

    Raises:
        UserError: it is not the state of such an optimizer over such parameters.
    """
    own = optimizer.state_dict()  # its tensors are the optimizer's
    cast, pairs = [], []
    try:
        check_optimizer_keys(state, own)
        for index, buffers in own["state"].items():
            for name, buffer in buffers.items():
                value = state["state"][index][name]
                if problem := difference(value, buffer):
                    raise ValueError(f"{name} of parameter {index} {problem}")
                if value.dtype != buffer.dtype:
                    cast.append(f"{name} of parameter {index}")
                pairs.append((buffer, value))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} can't be resumed: its optimizer is another one ({one_line(error, 150)})"
        ) from error
    report_cast(cast, source)
    for buffer, value in pairs:
        buffer.copy_(value)  # and so keeps its layout, which fused kernels don't look at


def check_optimizer_keys(state: dict, own: dict) -> None:
    """Raise ValueError where the state dict of an optimizer has other keys than its own has."""
    numbers = [[group["params"] for group in each["param_groups"]] for each in (state, own)]
    if state.keys() != own.keys() or numbers[0] != numbers[1]:
        raise ValueError("of other parameters")
    names = [{i: set(buffers) for i, buffers in each["state"].items()} for each in (state, own)]
    if names[0] != names[1]:
        raise ValueError("buffers are missing or unexpected")


def report_cast(names: list[str], source: Path) -> None:
    if names:
        print_once(f"{source}: cast to the network's own number type: {listing(names)}")


def listing(names: list[str], most: int = 3) -> str:
    """The first few names and how many more there are, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
