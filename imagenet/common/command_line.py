"""The command line: options that are declared once, one-line errors, and the exit status.

An option is a field of a frozen dataclass, made by `option`; `build_parser` turns it into a flag.
"""

import argparse
import contextlib
import difflib
import multiprocessing
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

# What a resumed run does with an option. FIXED: it decides the result, so it is that of the
# checkpoint. FREE: that of the checkpoint unless it is given. LOCAL: never that of the checkpoint.
FIXED, FREE, LOCAL = "fixed", "free", "local"


class UserError(Exception):
    """An error that the user can fix, in one line: what was given and expected, and what to do."""

    status = 2  # of the process


class Incomplete(UserError):
    """A part of the work could not be done; the rest is."""

    status = 1


class Interrupted(BaseException):
    """A termination signal arrived between two steps, and the run is saved."""

    def __init__(self, signum: int, note: str = ""):
        super().__init__(signal.Signals(signum).name + note)
        self.status = 128 + signum


def option(
    group: str,
    default: Any,
    kind: Callable,
    help: str,
    *aliases: str,
    role: str = FIXED,
    **argument,
) -> Any:
    """Declare an option, as a field of a dataclass.

    Args:
        group: in which --help shows it.
        default: None if other options decide.
        kind: argparse's type, or bool for a flag without a value.
        help: for --help, which adds the default unless the text has it.
        aliases: other spellings of the flag.
        role: what a resumed run does with it.
        argument: further arguments of argparse's `add_argument`.
    """
    if kind is bool:
        argument["action"] = "store_true"
    else:
        # The shell leaves the ~ of --save=~/runs.
        kind = (lambda text: Path(os.path.expanduser(text))) if kind is Path else kind
        argument = {"type": kind, "metavar": getattr(kind, "metavar", "PATH")} | argument
    metadata = {"group": group, "help": help, "aliases": aliases, "role": role}
    return field(default=default, metadata=metadata | {"argument": argument})


class ArgumentParser(argparse.ArgumentParser):
    """A parser that treats `-` and `_` in flags alike and raises `UserError` on errors."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def parse_given(self, argv: Sequence[str] | None = None) -> dict:
        """Return the options that are on the command line, by name."""
        flags = {flag.replace("_", "-"): flag for flag in self._option_string_actions}
        words, used = [], {}
        for word in sys.argv[1:] if argv is None else argv:
            flag, equals, value = word.partition("=")
            if not word or (equals and value in ("", "--")):  # argparse drops this
                self.error(f"an empty argument ({word!r}): is a variable of the shell not set?")
            if word[0] in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212":
                self.error(f"{word} begins with a typographic dash; type hyphens")
            if flag.strip("-") and flag.startswith("--") and flag.replace("_", "-") not in flags:
                self.error(f"unknown option {flag}{hint(flag.replace('_', '-'), flags)}")
            flag = flags.get(flag.replace("_", "-"), flag)
            action = self._option_string_actions.get(flag)
            if action and used.setdefault(action.dest, action) is not action:
                self.error(f"{flag} is another name of {used[action.dest].option_strings[-1]}")
            words.append(flag + equals + value)
        return vars(self.parse_args(words))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


def build_parser(config_class: type, prog: str, description: str) -> ArgumentParser:
    """Return a parser with a flag for each option of a dataclass, in its groups."""
    parser = ArgumentParser(
        prog=prog,
        description=f"{description} Hyphens and underscores in options are interchangeable.",
    )
    options = [each for each in fields(config_class) if each.metadata]
    names = dict.fromkeys(each.metadata["group"] for each in options)
    groups = {name: parser.add_argument_group(name) for name in names}
    for each in options:
        about, text = each.metadata, each.metadata["help"]
        if each.default not in (None, "", (), False) and "default" not in text:
            text += f" (default: {each.default})"
        flags = ["--" + each.name.replace("_", "-"), *about["aliases"]]
        flags.sort(key=lambda flag: flag.startswith("--"))  # short ones first, as in --help
        group = groups[about["group"]]
        group.add_argument(*flags, dest=each.name, help=text, **about["argument"])
    return parser


def hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.7)
    return f"; did you mean {close[0]}?" if close else ""


def number(kind: type, minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """Accept an int or float in [minimum, maximum]."""
    noun = "a whole number" if kind is int else "a number"
    limits = f"of at least {minimum}" if maximum == float("inf") else f"from {minimum} to {maximum}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
            if not minimum <= value <= maximum or value >= 2**62:  # NaN and infinity fail too
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {noun} {limits}, got {text!r}") from None
        return value

    convert.metavar = "N" if kind is int else "X"
    return convert


def choice(*names: str) -> Callable[[str], str]:
    """Accept one of the names, in any case."""
    known = {name.lower(): name for name in names}

    def convert(text: str) -> str:
        if text.lower() in known:
            return known[text.lower()]
        expected = f"expected {', '.join(names)}, got {text!r}"
        raise argparse.ArgumentTypeError(expected + hint(text.lower(), known))

    convert.metavar = "NAME"
    return convert


def finished_epochs(text: str) -> tuple[int, ...]:
    """Accept `30,60,90` or `[30,60,90]`. An epoch that is given twice counts once."""
    words = [word.strip() for word in text.strip("[] ").split(",") if word.strip()]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"expected epochs such as 30,60,90, got {text!r}")
    return tuple(dict.fromkeys(map(int, words)))


def start_epochs(text: str) -> tuple[int, ...]:
    """Accept epochs counted from 1, as in the released code; return the finished ones before."""
    starts = finished_epochs(text)
    if 0 in starts:
        raise argparse.ArgumentTypeError(f"expected epochs counted from 1, got {text!r}")
    return tuple(epoch - 1 for epoch in starts)


def run_script(run: Callable[[], None]) -> NoReturn:
    """Call `run` and end the process with its exit status.

    Data-loading workers, which ignore SIGTERM, are killed. In a process group the process ends at
    once: Python's own exit would wait for the other processes.
    """
    for name in ("stdout", "stderr"):  # output never ends a computation
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):  # not in a notebook
            getattr(sys, name).reconfigure(errors="backslashreplace")
    status = exit_status(run)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would raise an error
    for worker in multiprocessing.active_children():
        worker.kill()
    if dist.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def exit_status(run: Callable[[], None]) -> int:
    """Call `run` and return the exit status.

    0: success. 2: an error that the user can fix, printed to standard error as one line. 1: any
    other error, or a part of the work was not done. 128 + N: stopped by signal N.
    """
    status = 2
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # odd images, decoded correctly
            run()
        return 0
    except (UserError, OSError) as error:
        message, status = one_line(error), getattr(error, "status", 2)
    except (KeyboardInterrupt, Interrupted) as stop:
        message, status = f"stopped by {str(stop) or 'SIGINT'}", getattr(stop, "status", 130)
    except Exception as error:
        if is_out_of_memory(error):
            message = f"not enough memory ({one_line(error, 150)}); use a smaller -b"
        elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            message = f"--compile: {one_line(error, 200)}; is there a C++ compiler?"
        elif isinstance(error, dist.DistError) or "gloo" in str(error):
            message = (
                f"{one_line(error, 300)}; look for the error of another process above, or set "
                "NCCL_DEBUG=INFO; in Docker, increase --shm-size"
            )
        else:
            traceback.print_exc()
            return 1
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the host ran out of memory."""
    if isinstance(error, dist.DistError):  # such as NCCL's "socket, malloc"
        return False
    found = re.search("out of memory|can't allocate memory", str(error), re.IGNORECASE)
    return bool(found) or isinstance(error, MemoryError | torch.OutOfMemoryError)


def one_line(error: BaseException, limit: int = 500) -> str:
    """Return the error's message on one line, truncated to `limit` characters."""
    text = str(error).rpartition("Last error:")[2]  # the cause, at the end of a message of NCCL
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " …"


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: "1 epoch", "3 epochs", "2 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
