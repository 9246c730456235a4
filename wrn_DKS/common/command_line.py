"""The command line of every script: flags, one-line errors, and the exit status.

This module does not import torch, so that `--help` does not wait for it.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .signals import Interrupted, raise_signals

DTYPES = {  # torch's name of each spelling
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}


class UserError(Exception):
    """An error that the user can fix.

    The message is one line: what was given, what was expected, and what to do.
    """


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the defaults of options, except those that are None, False or empty."""

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = action.default not in (None, "", False)
        return super()._get_help_string(action) if has_default else action.help


class ArgumentParser(argparse.ArgumentParser):
    """A parser that treats `-` and `_` in flags alike and raises `UserError` on errors."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=DefaultsHelpFormatter, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        flags = {flag.replace("_", "-"): flag for flag in self._option_string_actions}
        words = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=")
            if flag.startswith("-") and value == "--":  # argparse would parse an empty list
                self.error(f"argument {flag}: expected a value, got '--'")
            words.append(flags.get(flag.replace("_", "-"), flag) + equals + value)
        return super().parse_args(words, namespace)

    def parse_given(self, args: Sequence[str] | None = None) -> dict:
        """Return only the options that are on the command line, by name."""
        absent = object()
        names = [action.dest for action in self._actions]
        options = vars(self.parse_args(args, argparse.Namespace(**dict.fromkeys(names, absent))))
        return {name: value for name, value in options.items() if value is not absent}

    def error(self, message: str):
        raise UserError(f"{message} (--help lists all options)")


def bounded_number(
    kind: type, minimum: float, maximum: float = float("inf")
) -> Callable[[str], float]:
    """Return an argparse type for an int or float in [minimum, maximum]."""
    name = "a whole number" if kind is int else "a number"
    limits = f"of at least {minimum}"
    if maximum != float("inf"):
        limits = f"from {minimum} to {maximum}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if kind is int and value and value > 2**62:  # larger values overflow int64 in torch
            raise argparse.ArgumentTypeError(f"expected {name} below 2^62, got {text!r}")
        # Written so that NaN and infinity fail.
        if value is None or not (minimum <= value <= maximum and value < float("inf")):
            raise argparse.ArgumentTypeError(f"expected {name} {limits}, got {text!r}")
        return value

    return convert


def require_file(flag: str, path: Path, what: str) -> None:
    """Raise `UserError` if there is no file at `path`; `what` describes the expected file."""
    if not path.is_file():
        problem = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{flag} {path}: {problem}; give the path of {what}")


def require_writable_file(flag: str, path: Path) -> None:
    """Raise `UserError` if `path` is not a regular file or its folder does not exist."""
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path}: exists but is not a regular file; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: no such folder: {path.parent}; create it first")


def exit_status(run: Callable[[], None]) -> int:
    """Call `run` and return the exit status of the process.

    0: success. 2: a `UserError` or a system error, such as a full disk or too little memory;
    the reason is printed to standard error as one line. 130, 143 or 129: stopped by SIGINT,
    SIGTERM or SIGHUP.
    """
    try:
        with raise_signals(), warnings.catch_warnings():
            # PIL warns about odd images that it decodes correctly. Set the filter only once:
            # filters are global to the process, and images are read in threads.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            run()
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"error: not enough memory ({one_line(error, 150)}); use smaller batches, images or "
            "networks",
            file=sys.stderr,
        )
        return 2
    except Interrupted as stop:
        print(f"stopped by {stop}", file=sys.stderr)
        return stop.status
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the host ran out of memory."""
    # torch.OutOfMemoryError is a RuntimeError. cuDNN, cuBLAS and the CPU allocator raise plain
    # RuntimeErrors.
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "alloc" in str(error).lower()


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: "1 epoch", "3 epochs", "2 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def root_cause(error: BaseException) -> str:
    """Return why a download failed: the system error behind it, or else the error's message."""
    root = error
    while cause := root.__cause__ or (not root.__suppress_context__ and root.__context__):
        root = cause
    if isinstance(root, OSError):
        return root.strerror or one_line(root, 150)
    return one_line(error, 150)


def one_line(error: BaseException, limit: int = 500) -> str:
    """Return the error's message on one line, truncated to `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " …"
