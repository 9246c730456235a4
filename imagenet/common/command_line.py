"""How a script meets its user: flags, refusals in one line (status 2), signals (130 and 143)."""

import argparse
import contextlib
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}


class UserError(Exception):
    """The run can't go on with what it was given.

    The message is one line: what was given, what was expected and what to do about it.
    """


class Interrupted(BaseException):
    """A signal that ends a run arrived. No `Exception`: no handler of errors must swallow it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = action.default not in (None, "", False)
        return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
    """An argument parser that takes `-` for `_` in a flag and refuses in one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=Help, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        declared = {flag.replace("_", "-"): flag for flag in self._option_string_actions}
        spelled = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=")
            if flag.startswith("-") and value == "--":  # argparse would make an empty list of it
                self.error(f"argument {flag}: expected a value, got '--'")
            spelled.append(declared.get(flag.replace("_", "-"), flag) + equals + value)
        return super().parse_args(spelled, namespace)

    def error(self, message: str):
        raise UserError(f"{message} (--help lists every option)")


def bounded_number(
    kind: type, minimum: float, maximum: float = float("inf")
) -> Callable[[str], float]:
    """The argparse type of an int or float from `minimum` to `maximum`, both included."""
    name = "a whole number" if kind is int else "a number"
    limits = f"of at least {minimum}"
    if maximum != float("inf"):
        limits = f"from {minimum} to {maximum}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if kind is int and value and value > 2**62:  # no count in torch or Python goes further
            raise argparse.ArgumentTypeError(f"expected {name} below 2^62, got {text!r}")
        # Written so that NaN fails it, and infinity too: no option of ours means either.
        if value is None or not (minimum <= value <= maximum and value < float("inf")):
            raise argparse.ArgumentTypeError(f"expected {name} {limits}, got {text!r}")
        return value

    return convert


def require_file(flag: str, path: Path, what: str) -> None:
    """Refuse a path where there is no file; `what` it should be of."""
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file; give the path of {what}")


def require_writable_file(flag: str, path: Path) -> None:
    """Refuse a path where no file can be written, or something else is: a folder, a device."""
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path}: there, and no file; give another name")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: no folder {path.parent}; make it first")


def termination_signals() -> list[signal.Signals]:
    """Those that end a run: SIGINT, SIGTERM and SIGHUP, a closed terminal's.

    The last one not where it is ignored, as under nohup.
    """
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Turn the signals that end a run into `Interrupted` while the block runs."""

    def stop(signum, frame):
        raise Interrupted(signum)

    previous = {s: signal.signal(s, stop) for s in termination_signals()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Let a signal that ends a run, arriving while the block runs, take effect when it ends."""
    arrived = []
    previous = {
        s: signal.signal(s, lambda signum, frame: arrived.append(signum))
        for s in termination_signals()
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def exit_status(run: Callable[[], None]) -> int:
    """Call `run` and return the process's exit status.

    0 when it returns, 2 when it refuses or the system does (disk full, no permission, no memory),
    130, 143 or 129 when SIGINT, SIGTERM or SIGHUP stops it. The reason goes to standard error as
    one line.
    """
    try:
        with raise_on_signals(), warnings.catch_warnings():
            # Of oddities in images that it decodes all the same. (Set once, as filters are the
            # whole process's and images are read by threads.)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            run()
    except UserError as refusal:
        print(f"error: {one_line(refusal)}", file=sys.stderr)
        return 2
    except OSError as error:
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
    """Whether memory has run out, the device's or this machine's."""
    # cuDNN, cuBLAS and the CPU's allocator raise no class of their own.
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "alloc" in str(error).lower()


def one_line(error: BaseException, limit: int = 500) -> str:
    """The error's message with its line breaks folded, cut after `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " …"
