"""Damaged checkpoints, files of other kinds, and pickles that would run code."""

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch

from torture.attempts import Attempt, Fault, expect, expect_success, expect_user_error
from torture.readers import READERS, Reader, prepare_readers

HTML = b"<!DOCTYPE html><html><title>Quota exceeded</title><body>Try again later</body></html>"


def damaged_file(attempt: Attempt) -> None:
    """Read a damaged checkpoint."""
    reader = READERS[attempt.index % len(READERS)]
    damages = [*BYTE_DAMAGES, *CONTENT_DAMAGES]
    damage = damages[attempt.index // len(READERS) % len(damages)]
    path = attempt.folder / f"{damage.__name__}.pt"
    intact = attempt.shared / f"{reader.name}.pt"
    if damage in BYTE_DAMAGES:
        path.write_bytes(damage(intact.read_bytes(), attempt.rng))
        expect_not_used(reader, attempt, path, may_be_read=damage is flipped_bit)
        return
    content = torch.load(intact, weights_only=True)
    location = damage(content, attempt.rng)
    print(damage.__name__, location)  # printed if the attempt is not survived
    weights = content.get("state_dict")
    only_tensors = isinstance(weights, dict) and all(map(torch.is_tensor, weights.values()))
    if only_tensors and attempt.rng.random() < 0.5:
        path = path.with_suffix(".safetensors")
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=attempt.rng.random() < 0.7)
    if damage is other_width and not reader.ignores(location):
        result = reader.read(attempt, path)
        expect_success(result)
        expect(
            result.out.count("cast to") == 1, f"expected a note on the cast of {location}", result
        )
    else:
        expect_not_used(reader, attempt, path, reader.ignores(location), str(location))


def expect_not_used(
    reader: Reader, attempt: Attempt, path: Path, may_be_read: bool, what: str = ""
) -> None:
    """Expect an error or, if `may_be_read`, the same result as with the intact file."""
    result = reader.read(attempt, path)
    if result.status or not may_be_read:
        expect_user_error(result, str(path))
        return
    expect_success(result)
    difference = reader.difference(attempt, result)
    expect(not difference, f"{what}: the damage was not noticed and changed {difference}", result)


def truncated(intact: bytes, rng: random.Random) -> bytes:
    return intact[: rng.randrange(len(intact))]


def flipped_bit(intact: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(intact)
    damaged[rng.randrange(len(intact))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def empty(intact: bytes, rng: random.Random) -> bytes:
    return b""


def text_file(intact: bytes, rng: random.Random) -> bytes:
    return "".join(rng.choices("weights of an epoch\n", k=rng.randrange(1, 5000))).encode()


def web_page(intact: bytes, rng: random.Random) -> bytes:
    return b"\n" * rng.randrange(3) + HTML


def entries(content: dict | list, above: tuple = ()) -> Iterator[tuple[dict | list, tuple]]:
    """Yield the container and the location (the keys) of every entry of nested containers."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield content, (*above, key)
        if isinstance(content[key], dict | list):
            yield from entries(content[key], (*above, key))


def replace_tensor(
    content: dict, rng: random.Random, replace: Callable[[torch.Tensor], torch.Tensor]
) -> tuple:
    """Replace a floating-point tensor; return its location."""
    tensors = [
        (container, location)
        for container, location in entries(content)
        if isinstance(value := container[location[-1]], torch.Tensor) and value.is_floating_point()
    ]
    container, location = rng.choice(tensors)
    container[location[-1]] = replace(container[location[-1]])
    return location


def other_shape(content: dict, rng: random.Random) -> tuple:
    return replace_tensor(content, rng, lambda value: torch.stack([value, value]))


def not_finite(content: dict, rng: random.Random) -> tuple:
    def replace(value: torch.Tensor) -> torch.Tensor:
        value = value.contiguous()
        value.view(-1)[rng.randrange(value.numel())] = float(rng.choice(["nan", "inf"]))
        return value

    return replace_tensor(content, rng, replace)


def integers(content: dict, rng: random.Random) -> tuple:
    kind = rng.choice([torch.int64, torch.int32, torch.uint8, torch.bool])
    return replace_tensor(content, rng, lambda value: value.to(kind))


def other_width(content: dict, rng: random.Random) -> tuple:
    # The sums over an epoch may be float64.
    sums = content.pop("sums", None)
    kind = rng.choice([torch.float64, torch.float16, torch.bfloat16])
    location = replace_tensor(content, rng, lambda value: value.to(kind))
    if sums is not None:
        content["sums"] = sums
    return location


def missing_key(content: dict, rng: random.Random) -> tuple:
    container, location = rng.choice([each for each in entries(content) if type(each[0]) is dict])
    del container[location[-1]]
    return location


def added_key(content: dict, rng: random.Random) -> tuple:
    container, location = rng.choice([each for each in entries(content) if type(each[0]) is dict])
    container["surplus"] = torch.zeros(2)
    return (*location[:-1], "surplus")


def other_type(content: dict, rng: random.Random) -> tuple:
    container, location = rng.choice(list(entries(content)))
    values = [None, -5, "argv", 0.125, [], {}, [1, "2"], {"3": 4}]
    current = type(container[location[-1]])
    container[location[-1]] = rng.choice([value for value in values if type(value) is not current])
    return location


BYTE_DAMAGES = (truncated, flipped_bit, empty, text_file, web_page)
CONTENT_DAMAGES = (
    *(other_shape, not_finite, integers, other_width, other_width),
    *(missing_key, added_key, other_type),
)


class PickledCall:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def harmful_pickle(attempt: Attempt) -> None:
    """Read a pickle that would create a file."""
    created = attempt.folder / "created"
    statement = f"open({str(created)!r}, 'w').close()"
    code = (
        PickledCall(os.system, f"touch {created}"),
        PickledCall(eval, statement),
        PickledCall(exec, statement),
        PickledCall(getattr, PickledCall(__import__, "os"), "mkdir"),
        PickledCall(list, PickledCall(map, os.mkdir, [str(created)])),
    )[attempt.index % 5]
    suffix = (".pt", ".pt7", ".pth", ".safetensors")[attempt.index % 4]
    reader = attempt.rng.choice(READERS)
    content = torch.load(attempt.shared / f"{reader.name}.pt", weights_only=True)
    content[attempt.rng.choice(list(content))] = code
    path = attempt.folder / f"harmful{suffix}"
    form = attempt.rng.randrange(3)
    if form == 2:
        path.write_bytes(pickle.dumps(content if attempt.rng.random() < 0.5 else code))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=bool(form))
    expect_not_used(reader, attempt, path, may_be_read=False)
    expect(not created.exists(), "the code in the file was run", path)


FAULTS = [
    Fault(
        "damaged",
        "damaged checkpoint: truncated, flipped bit, tensor of another shape or type, missing or "
        "extra keys, NaN or infinity, empty file, text file, web page",
        300,
        "one-line error with the path, or the same result if the damaged part is not used; floats "
        "of another width are cast and a note is printed",
        damaged_file,
        prepare_readers,
    ),
    Fault(
        "pickle",
        "pickle that would run code, as .pt, .pt7, .pth or .safetensors",
        20,
        "one-line error; the code does not run",
        harmful_pickle,
        prepare_readers,
    ),
]
