"""Checkpoints that are damaged, or something else, or would run code when they are loaded."""

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch

from torture.attempts import Attempt, Fault, expect, expect_done, expect_refused
from torture.readers import READERS, Reader, prepare_readers

HTML = b"<!DOCTYPE html><html><title>Quota exceeded</title><body>Try again later</body></html>"


def damaged_file(attempt: Attempt) -> None:
    """Read a file that was damaged."""
    reader = READERS[attempt.index % len(READERS)]
    kinds = [*BYTES, *CONTENTS]
    kind = kinds[attempt.index // len(READERS) % len(kinds)]
    path = attempt.folder / f"{kind.__name__}.pt"
    whole = attempt.shared / f"{reader.name}.pt"
    if kind in BYTES:
        path.write_bytes(kind(whole.read_bytes(), attempt.draws))
        expect_unused(reader, attempt, path, may_be_read=kind is flipped_bit)
        return
    content = torch.load(whole, weights_only=True)
    place = kind(content, attempt.draws)
    print(kind.__name__, place)  # shown if it is not survived
    weights = content.get("state_dict")
    tensors = isinstance(weights, dict) and all(map(torch.is_tensor, weights.values()))
    if tensors and attempt.draws.random() < 0.5:
        path = path.with_suffix(".safetensors")
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=attempt.draws.random() < 0.7)
    if kind is other_width and not reader.unread(place):
        ended = reader.read(attempt, path)
        expect_done(ended)
        expect(ended.out.count("cast to") == 1, f"expected a line about the cast of {place}", ended)
    else:
        expect_unused(reader, attempt, path, reader.unread(place), str(place))


def expect_unused(
    reader: Reader, attempt: Attempt, path: Path, may_be_read: bool, what: str = ""
) -> None:
    """The file is refused or, where that may be, read as if it were whole."""
    ended = reader.read(attempt, path)
    if ended.status or not may_be_read:
        expect_refused(ended, str(path))
        return
    expect_done(ended)
    difference = reader.difference(attempt, ended)
    expect(not difference, f"{what} silently used: it changed {difference}", ended)


def truncated(whole: bytes, draws: random.Random) -> bytes:
    return whole[: draws.randrange(len(whole))]


def flipped_bit(whole: bytes, draws: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
    return bytes(damaged)


def empty(whole: bytes, draws: random.Random) -> bytes:
    return b""


def text_file(whole: bytes, draws: random.Random) -> bytes:
    return "".join(draws.choices("weights of an epoch\n", k=draws.randrange(1, 5000))).encode()


def web_page(whole: bytes, draws: random.Random) -> bytes:
    return b"\n" * draws.randrange(3) + HTML


def places(content: dict | list, above: tuple = ()) -> Iterator[tuple[dict | list, tuple]]:
    """Every entry of nested dicts and lists: what holds it, and the keys that lead there."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield content, (*above, key)
        if isinstance(content[key], dict | list):
            yield from places(content[key], (*above, key))


def replace_tensor(
    content: dict, draws: random.Random, replace: Callable[[torch.Tensor], torch.Tensor]
) -> tuple:
    """Replace a tensor of floats; returns its place."""
    found = [
        (holder, place)
        for holder, place in places(content)
        if isinstance(holder[place[-1]], torch.Tensor) and holder[place[-1]].is_floating_point()
    ]
    holder, place = draws.choice(found)
    holder[place[-1]] = replace(holder[place[-1]])
    return place


def other_shape(content: dict, draws: random.Random) -> tuple:
    return replace_tensor(content, draws, lambda value: torch.stack([value, value]))


def not_finite(content: dict, draws: random.Random) -> tuple:
    def replace(value: torch.Tensor) -> torch.Tensor:
        value = value.contiguous()
        value.view(-1)[draws.randrange(value.numel())] = float(draws.choice(["nan", "inf"]))
        return value

    return replace_tensor(content, draws, replace)


def integers(content: dict, draws: random.Random) -> tuple:
    kind = draws.choice([torch.int64, torch.int32, torch.uint8, torch.bool])
    return replace_tensor(content, draws, lambda value: value.to(kind))


def other_width(content: dict, draws: random.Random) -> tuple:
    # MetricSums over an epoch are float64 and as they should be.
    sums = content.pop("sums", None)
    kind = draws.choice([torch.float64, torch.float16, torch.bfloat16])
    place = replace_tensor(content, draws, lambda value: value.to(kind))
    if sums is not None:
        content["sums"] = sums
    return place


def missing_key(content: dict, draws: random.Random) -> tuple:
    holder, place = draws.choice([found for found in places(content) if type(found[0]) is dict])
    del holder[place[-1]]
    return place


def added_key(content: dict, draws: random.Random) -> tuple:
    holder, place = draws.choice([found for found in places(content) if type(found[0]) is dict])
    holder["surplus"] = torch.zeros(2)
    return (*place[:-1], "surplus")


def other_kind(content: dict, draws: random.Random) -> tuple:
    holder, place = draws.choice(list(places(content)))
    values = [None, -5, "words", 0.125, [], {}, [1, "2"], {"3": 4}]
    own = type(holder[place[-1]])
    holder[place[-1]] = draws.choice([value for value in values if type(value) is not own])
    return place


BYTES = (truncated, flipped_bit, empty, text_file, web_page)
CONTENTS = (
    *(other_shape, not_finite, integers, other_width, other_width),
    *(missing_key, added_key, other_kind),
)


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


def harmful_pickle(attempt: Attempt) -> None:
    """Read a pickle that would make a file."""
    made = attempt.folder / "made"
    statement = f"open({str(made)!r}, 'w').close()"
    harm = (
        Reduced(os.system, f"touch {made}"),
        Reduced(eval, statement),
        Reduced(exec, statement),
        Reduced(getattr, Reduced(__import__, "os"), "mkdir"),
        Reduced(list, Reduced(map, os.mkdir, [str(made)])),
    )[attempt.index % 5]
    suffix = (".pt", ".pt7", ".pth", ".safetensors")[attempt.index % 4]
    reader = attempt.draws.choice(READERS)
    content = torch.load(attempt.shared / f"{reader.name}.pt", weights_only=True)
    content[attempt.draws.choice(list(content))] = harm
    path = attempt.folder / f"harmful{suffix}"
    form = attempt.draws.randrange(3)
    if form == 2:
        path.write_bytes(pickle.dumps(content if attempt.draws.random() < 0.5 else harm))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=bool(form))
    expect_unused(reader, attempt, path, may_be_read=False)
    expect(not made.exists(), "the code in it ran", path)


FAULTS = [
    Fault(
        "damaged",
        "a damaged checkpoint: truncated, a bit flipped, a tensor of another shape or type, keys "
        "missing or added, NaN or infinity inside, empty, a text file, a web page",
        300,
        "refused in one line with its path (or the damage is in what is not read, and the result "
        "the whole file's); floats of another width are cast, which a line says",
        damaged_file,
        prepare_readers,
    ),
    Fault(
        "pickle",
        "a pickle that would run code, as .pt, .pt7, .pth, .safetensors",
        20,
        "refused in one line, and nothing ran",
        harmful_pickle,
        prepare_readers,
    ),
]
