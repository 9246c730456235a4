"""Files of weights: written atomically, loaded without running code from them, and strictly.

The checkpoint of a run is a dict of `torch.save`. An export is the state dict of a backbone, as
`torch.save` or safetensors writes it, with the network's metadata, which other readers ignore.
"""

import argparse
import contextlib
import errno
import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from .command_line import UserError, one_line
from .distributed import print_once

METADATA_KEY = "dks"  # of the metadata in an export
FORMAT = 2  # of the checkpoint of a run


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that `path` always holds either the old or the new version.

    If that fails, for example because the disk is full, it is a `UserError`.
    """
    target = path.resolve()  # a symbolic link stays one
    temporary = target.with_name(target.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        # torch's zip writer raises a RuntimeError of its own after an OSError.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "the previous version is intact; " if path.exists() else ""
        raise UserError(
            f"{path} can't be saved: {one_line(cause, 150)}; {kept}"
            "free some space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every file system can flush a folder
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_to_disk(descriptor: int) -> None:
    """Flush a file, unless its file system has no such call."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def write_json(path: Path, content: object) -> None:
    """Write plain values to a JSON file, atomically."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def save(path: Path, content: dict) -> None:
    """Save a checkpoint atomically."""
    write_atomically(path, lambda file: torch.save(content, file))


def load(path: Path) -> dict:
    """Load a dict of `torch.save` or safetensors to the CPU, without running code from the file.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint, or it contains objects other
            than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint or the folder of a run")
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        scalar, *_ = np.float64(0).__reduce__()  # its module has another name since NumPy 2
        harmless = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
        harmless += [argparse.Namespace, np.dtype, *(type(np.dtype(each)) for each in "?bhilqefd")]
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
            warnings.simplefilter("ignore")  # print nothing besides the one-line error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any exception
        reason = one_line(error, 2000)
        if found := re.search(r"GLOBAL (\S+)", reason):
            reason = f"it contains {found[1]}, which loading could run"
        # Between these, torch says what is wrong; around them, how to run the code all the same.
        reason = reason.rpartition("WeightsUnpickler error: ")[2]
        reason = re.split(r" Check the doc|(?<=\w)\. ", reason)[0]
        with open(path, "rb") as file:
            if file.read(64).lstrip().startswith((b"<", b"version ")):
                reason = "it is a web page or a pointer of git-lfs; download the file itself"
        raise UserError(
            f"{path} can't be loaded as a checkpoint ({reason[:150]}); use an undamaged file that "
            "contains only tensors and plain values"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict, found {type(content).__name__}")
    if metadata_of(content) and content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path}: expected checkpoint format {FORMAT}, found {content['format']}; use the "
            "version of this code that wrote it"
        )
    return content


def load_safetensors(path: Path) -> OrderedDict[str, Tensor]:
    """Load a safetensors file as a state dict, with its metadata like one of `save_weights`."""
    with safetensors.safe_open(path, "pt") as file:
        state = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    state._metadata = {METADATA_KEY: json.loads(text)}
    return state


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict) -> None:
    """Write a state dict atomically, from the CPU: a plain one to other readers.

    If `path` ends in `.safetensors`, that is its format, otherwise `torch.save`'s. `metadata` are
    plain values about the network. It is a `UserError` if the file exists or can't be written.
    """
    if path.exists():
        raise UserError(f"--export {path}: exists already; choose another name")
    state = OrderedDict((name, each.detach().cpu().contiguous()) for name, each in state.items())
    if path.suffix != ".safetensors":
        # State dicts have the versions of modules there; the safe loader keeps the attribute.
        state._metadata = {METADATA_KEY: metadata}
        save(path, state)
        return
    content = safetensors.torch.save(state, {"format": "pt", METADATA_KEY: json.dumps(metadata)})
    write_atomically(path, lambda file: file.write(content))


def metadata_of(content: dict) -> dict:
    """Return the metadata of a loaded checkpoint or export; empty if it has none."""
    exported = getattr(content, "_metadata", None)
    exported = exported.get(METADATA_KEY) if isinstance(exported, dict) else None
    found = exported or content.get("metadata")
    return found if isinstance(found, dict) else {}


def progress(content: dict) -> str:
    """Return how far the run of a checkpoint is: `, after 3 of 100 epochs`, say; or nothing."""
    epochs = options.get("epochs") if isinstance(options := content.get("options"), dict) else None
    return f", after {content.get('epoch')} of {epochs} epochs" if epochs else ""


def require_keys(content: dict, types: dict[str, type], source: Path) -> None:
    """Raise `UserError` if a checkpoint lacks one of the keys or its value has another type."""
    for key, expected in types.items():
        if not isinstance(content.get(key), expected):
            keys = abbreviate([str(each) for each in content])
            raise UserError(
                f"{source}: not the checkpoint of a run: expected {expected.__name__} under the "
                f"key {key!r}; it has {keys}; to start from weights, use --init"
            )


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: object) -> None:
    """Load a state dict strictly: the same keys and shapes, and finite values only.

    Floating-point tensors of another precision are cast, and a line about it is printed. If the
    state dict does not fit, a `UserError` names the first such keys.
    """
    expected = model.state_dict()
    for problem, names in (
        ("missing", [name for name in expected if name not in weights]),
        ("unexpected", [name for name in weights if name not in expected]),
    ):
        if names:
            names = abbreviate([str(name) for name in names])
            raise UserError(f"{source} does not fit the network: {problem} keys {names}")
    for name, tensor in expected.items():
        if problem := mismatch(weights[name], tensor):
            raise UserError(f"{source} can't be used: {name} {problem}")
    cast = [name for name, tensor in expected.items() if weights[name].dtype != tensor.dtype]
    if cast:
        print_once(f"{source}: cast to the dtype of the network: {abbreviate(cast)}")
    model.load_state_dict(weights)


def load_backbone(
    model: nn.Module, weights: dict[str, Tensor], random: tuple[str, ...], source: object
) -> None:
    """Load weights for --init; those whose names begin with one of `random` stay as they are."""
    kept = {k: v for k, v in model.state_dict().items() if k.startswith(random)}
    load_weights(model, weights | kept, source)
    names = ", ".join(dict.fromkeys(name.partition(".")[0] for name in kept)) or "nothing"
    print_once(f"--init {source}: loaded the backbone; random: {names}")


def mismatch(value: object, expected: Tensor) -> str:
    """Describe why `value` can't replace the tensor `expected`; return "" if it can."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return f"is not a dense tensor but {type(value).__name__}"
    if value.shape != expected.shape:
        return f"has shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
    if value.is_floating_point() != expected.is_floating_point() or value.is_complex():
        return f"has dtype {value.dtype}, expected {expected.dtype}"
    return "" if value.isfinite().all() else "contains values that are not finite"


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, source: Path) -> None:
    """Load the buffers of an optimizer's state dict as strictly as `load_weights`.

    The optimizer keeps its own hyperparameters; its buffers must already be initialized.
    """
    expected = optimizer.state_dict()["state"]  # the optimizer's own tensors, not copies
    try:
        found = state["state"]
        if found.keys() != expected.keys():
            raise ValueError("of other parameters")
        for index, buffers in expected.items():
            for name, buffer in buffers.items():
                if problem := mismatch(found[index][name], buffer):
                    raise ValueError(f"{name} of parameter {index} {problem}")
                buffer.copy_(found[index][name])  # keeps the memory format that kernels rely on
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} can't be resumed: its optimizer state does not fit ({one_line(error, 150)})"
        ) from error


def abbreviate(names: list[str], limit: int = 3) -> str:
    """Join the first `limit` names for a message and count the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
