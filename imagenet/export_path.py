"""Where an exported backbone is: in a file, or in a folder for timm. Does not import torch."""

from importlib.util import find_spec
from pathlib import Path

from common.command_line import UserError, require_writable_file
from common.run_folder import checkpoint_path, refuse_run_file

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
WEIGHTS_FILE = "model.safetensors"  # in a folder; the name that timm and the Hub look for


def is_folder(path: Path) -> bool:
    """Return whether an export to `path` writes a folder."""
    return path.suffix not in FILE_SUFFIXES


def check_export(path: Path, in_run: bool = False, may_be_done: bool = False) -> None:
    """Check that a backbone can be exported to `path`, before the work that comes first.

    Args:
        path: of the export.
        in_run: it is in the output folder of the run, which need not exist yet.
        may_be_done: the run may have finished; its export may then exist.

    Raises:
        UserError: it exists, it cannot be written, or a package is missing.
    """
    if path.exists():
        if not may_be_done:
            raise export_exists(path)
    elif not in_run:
        require_writable_file("--export", path)
    if path.suffix not in (".pth", ".pt") and find_spec("safetensors") is None:
        raise UserError(f"--export {path}: writing it requires: pip install safetensors")


def export_exists(path: Path) -> UserError:
    return UserError(f"--export {path}: exists already; choose another name")


def refuse_output_of_run(path: Path, save: Path, log: str) -> None:
    """Raise `UserError` if an export would replace a file of its run, or hold the run's folder."""
    refuse_run_file("--export", path, save, log)
    if is_folder(path) and path.resolve() in (save.resolve(), *save.resolve().parents):
        raise UserError(
            f"--export {path}: the run writes in this folder (--save {save}); choose another name"
        )


def weights_path(path: Path) -> Path:
    """Return the file of weights that `path` names: itself, or that in an export or a run."""
    checkpoint, exported = checkpoint_path(path), path / WEIGHTS_FILE
    return exported if exported.is_file() and not checkpoint.is_file() else checkpoint
