"""Fingerprints of data. Logs hold them, so that no report averages runs on different data."""

import hashlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

# Files of a part whose size is read. A network file system takes up to a millisecond for each.
MAX_SIZES = 10_000


def fingerprint(lines: Iterable[str]) -> str:
    """Return a hash of the lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:12]


ClassFiles = Iterable[tuple[str, Path]]  # class and path of each file


def fingerprint_files(train: ClassFiles, test: ClassFiles) -> str:
    """Return a hash of the classes, names and sizes of the training and the test files."""
    return fingerprint(chain(describe_files("train", train), describe_files("test", test)))


def describe_files(part: str, files: ClassFiles) -> Iterable[str]:
    """Yield a line for each file, in the same order for every order of `files` and any folder.

    The line has the part, the class and the name of the file. The size is added for at most
    `MAX_SIZES` files, evenly spaced.
    """
    ordered = sorted((name, path.name, path) for name, path in files)
    spacing = -(-len(ordered) // MAX_SIZES)
    for index, (class_name, name, path) in enumerate(ordered):
        size = file_size(path) if index % spacing == 0 else ""
        yield f"{part}/{class_name}/{name} {size}"


def file_size(path: Path) -> int | None:
    """Return the size in bytes; None if the file can't be found, such as behind a broken link."""
    try:
        return path.stat().st_size
    except OSError:
        return None
