"""Which checkpoint a run resumes from: the same on every process, and never at a loss."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from . import checkpoint
from .command_line import UserError, one_line, plural, require_file
from .distributed import gather_objects
from .json_log import Log
from .run_folder import CHECKPOINT, checkpoint_path

Content = TypeVar("Content")


def load_to_resume(
    log: Log, resume: str, load: Callable[[Path], Content], position: Callable[[Content], str]
) -> tuple[Path, Content] | None:
    """Find and load the checkpoint to resume from. All processes must call it together.

    Args:
        log: of the run, in its folder.
        resume: a checkpoint, the folder of a run, `auto`, or empty.
        load: loads a checkpoint.
        position: returns what a checkpoint contains, such as `epoch 3`.

    Returns:
        The path of the checkpoint and its content, or None to start from scratch.

    Raises:
        UserError: there is no such checkpoint, a run would be overwritten, or the processes do
            not find the same checkpoint.
    """
    found, error = None, None
    try:
        path = checkpoint_to_resume(log, resume)
        found = (path, load(path)) if path else None
        summary = f"a checkpoint of {position(found[1])}" if found else "no checkpoint"
    except (UserError, OSError) as failure:
        error, summary = failure, f"an error ({one_line(failure)})"
    summaries = gather_objects(summary)
    if error:
        raise error
    for rank, other in enumerate(summaries):
        if other != summaries[0]:
            raise UserError(
                f"process 0 of this run finds {summaries[0]}, process {rank} {other}; --save and "
                "--resume must name the same shared folder and file on every machine"
            )
    return found


def checkpoint_to_resume(log: Log, resume: str) -> Path | None:
    """Return the checkpoint to resume from, or None. See `load_to_resume`."""
    folder = log.path.parent
    own = folder / CHECKPOINT
    given = None if resume in ("", "auto") else checkpoint_path(Path(resume))
    if given:
        require_file("--resume", given, "a checkpoint, or the --save folder of a run")
    if own.exists():
        if resume == "auto" or given and is_restart(own, given):
            return own
        if given and given.resolve().parent == folder.resolve():
            raise UserError(
                f"--resume {given}: this run would replace {own}, another checkpoint; resume that "
                "with --resume auto, or choose another folder with --save"
            )
    elif may_start(log, resume, given):
        return given
    raise UserError(
        f"--save {folder}: already contains a run; resume it with --resume auto, or choose "
        "another folder"
    )


def is_restart(own: Path, given: Path) -> bool:
    """Return whether `own` is `given`, or the checkpoint of a run that was resumed from it.

    The latter is the case when the same command is started again, such as by torchrun.
    """
    if own.resolve() == given.resolve():
        return True
    options = checkpoint.load(own).get("options")
    source = options.get("resume") if isinstance(options, dict) else None
    if source in (None, "", "auto"):
        return False
    return checkpoint_path(Path(source)).resolve() == given.resolve()


def may_start(log: Log, resume: str, given: Path | None) -> bool:
    """Return whether a run may start in a folder without a checkpoint.

    A run logs an epoch before it saves it. The log of a run that was killed in between has one
    record, which the run repeats.

    Raises:
        UserError: the checkpoint of the log's run was lost.
    """
    records = log.records() if log.path.exists() else []
    if given and given.resolve().parent == log.path.parent.resolve():
        return True  # a copy of the checkpoint, by its name
    if resume == "auto" and len(records) > 1:
        raise UserError(
            f"{log.path}: has {plural(len(records), 'epoch')}, but there is no {CHECKPOINT} beside "
            "it; restore that file, or resume a copy of it with --resume FILE, or choose another "
            "folder"
        )
    return not log.path.exists() or bool(resume) and len(records) <= 1
