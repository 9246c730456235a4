"""Damaged, foreign and harmful checkpoints."""

import json
import os
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from halves import VARYING, assert_equal, contents, load, records, without
from torture.harness import SHARED, Attempt

WRN = "--dataset digits --depth 10 --width 0.25 -b 256 --device cpu"
TRAIN = "IMAGES -a resnet18 --image-size 40 -b 4 --lr 0.02 -j 0 --device cpu"
RESUME, INIT = "--save run --epochs 3 --resume FILE", "--save run --epochs 1 --init FILE"
OUT, IMAGE = "-j 1 --device cpu --json out.json", "IMAGES/val/cat/cat_0.png"
READERS = [  # programs and options; even: of wrn_DKS, odd: of imagenet
    ("wrn", f"{WRN} {RESUME}"),
    ("train", f"{TRAIN} {RESUME}"),
    ("wrn", f"{WRN} {INIT}"),
    ("train", f"{TRAIN} {INIT}"),
    ("wrn", f"{OUT} --evaluate --resume FILE"),
    ("test", f"{OUT} IMAGES --model_path FILE"),
    ("wrn", f"{OUT} --predict {IMAGE} --resume FILE"),
    ("test", f"{OUT} --predict {IMAGE} --model_path FILE"),
]


def command(attempt: Attempt, reader: int, file: object) -> tuple[str, list[str]]:
    """Return the program of a reader and its arguments."""
    program, options = READERS[reader]
    words = options.replace("IMAGES", str(attempt.shared / "images"))
    return program, words.replace("FILE", str(file)).split()


def source(attempt: Attempt, reader: int, name: str = "checkpoint.pt") -> Path:
    """Return a checkpoint or an export that a reader accepts, made on the first call."""
    half = reader % 2
    made = attempt.shared / f"source-{half}"
    with SHARED:
        if not made.exists():  # stopped within an epoch
            program, argv = command(attempt, half, "auto")
            result = attempt.run(program, [*argv, "--ema", "0.5", "--save", made], "0 9 SIGTERM")
            assert result.status == 143, f"expected to be stopped: {result}"
            for export in ("export.pt", "export.safetensors"):
                words = [*(() if half else ("--evaluate",)), "--model_path", made, "--export"]
                attempt.run("test" if half else "wrn", [*words, made / export]).expect_success()
    return made / name


def outcome(folder: Path) -> object:
    """Return what a program has computed in a folder."""
    if (folder / "run").exists():
        logged = [without(each, (*VARYING, "options")) for each in records(folder / "run")]
        return without(load(folder / "run"), ("options",)), logged
    found = json.loads((folder / "out.json").read_text())
    varying = "checkpoint", "options", "images_per_s"
    return without(found, varying) if isinstance(found, dict) else found


def intact(attempt: Attempt, reader: int, name: str) -> object:
    """Return what a program computes from an intact file."""
    folder = attempt.shared / f"intact-{reader}-{name}"
    with SHARED:
        if not folder.exists():
            folder.mkdir()
            argv = command(attempt, reader, source(attempt, reader, name))
            replace(attempt, folder=folder).run(*argv).expect_success()
    return outcome(folder)


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return in a word how a file is damaged, and its content."""
    place, kind = rng.randrange(len(data)), rng.choice(("truncated", "flip", "block", "foreign"))
    if kind == "foreign":
        return kind, rng.choice((b"", b"<html>Quota exceeded", pickle.dumps([1]), bytes(999)))
    if kind == "truncated":
        return kind, data[:place]
    length = 1 if kind == "flip" else rng.randint(1, 5000)
    changed = bytes(byte ^ rng.randrange(1, 256) for byte in data[place : place + length])
    return kind, data[:place] + changed + data[place + length :]


def entries(content: dict | list, above: tuple = ()) -> Iterator[tuple]:
    """Yield the container and the location (the keys) of every entry of nested containers."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield content, (*above, key)
        if isinstance(content[key], dict | list):
            yield from entries(content[key], (*above, key))


def damage_entry(content: dict, rng: random.Random) -> str:
    """Damage an entry of a loaded file; return where and how."""
    first = rng.choice(list(content))
    parent, where = rng.choice([each for each in entries(content) if each[1][0] == first])
    value, how = parent[where[-1]], rng.choice(("missing", "surplus", "other", "other", "other"))
    others = [None, -5, "argv", 0.125, [], {}, [1, "2"], {"3": 4}, torch.zeros(2)]
    others = [each for each in others if type(each) is not type(value)]
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        wide = value.double()
        others = [torch.stack([value] * 2), wide, wide * float("nan"), wide + float("inf")]
        others += [value.to(torch.int64), value.to(torch.complex64)]
    if how == "missing":
        parent.pop(where[-1])
    elif how == "surplus":
        parent.append(0) if isinstance(parent, list) else parent.update(surplus=torch.zeros(2))
    else:
        how = rng.choice(others)
        parent[where[-1]] = how
    return f"{'/'.join(map(str, where))} {str(how)[:50]!r}"


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def checkpoints(attempt: Attempt) -> None:
    """checkpoints and exports for `--resume`, `--init`, `--evaluate`, `--predict`: truncated,
    overwritten in parts, foreign, with a damaged, missing or surplus entry, or with code

    one line with the path, no code run and nothing written; or the result of the intact file (or
    another one: numbers that are overwritten and options that are changed may go unnoticed)
    """
    rng, reader = attempt.rng, attempt.index % len(READERS)
    name = rng.choice(["checkpoint.pt"] * 2 + ["export.pt", "export.safetensors"] * (reader > 1))
    expected, whole = intact(attempt, reader, name), source(attempt, reader, name)
    path, auto = attempt.folder / name, reader < 2 and rng.random() < 0.5
    if auto:  # the run's own checkpoint
        path = attempt.folder / "run" / name
        path.parent.mkdir()
    created, chosen = attempt.folder / "created", rng.random()
    if chosen < 0.45:
        kind, data = damaged(whole.read_bytes(), rng)
        path.write_bytes(data)
    else:
        content, kind = torch.load(whole.with_suffix(".pt"), weights_only=True), "code"
        if chosen < 0.8:
            kind = damage_entry(content, rng)
        else:
            calls = [Call(os.system, f"touch {created}"), Call(os.mkdir, str(created))]
            call = rng.choice([*calls, Call(exec, f"open({str(created)!r}, 'w')")])
            content[rng.choice(list(content))] = call
            content = content if rng.random() < 0.7 else call
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    # In numbers and options, damage may go unnoticed.
    anywhere = kind.startswith(("flip", "block", "options", "metadata", "data", "ema 'missing'"))
    before = contents(attempt.folder)
    result = attempt.run(*command(attempt, reader, "auto" if auto else path))
    result = result._replace(about=f"{kind}: {result.about}")
    assert not created.exists(), f"code in the file ran: {result}"
    if not result.expect_success_or_error("" if anywhere else name):
        after = {each: v for each, v in contents(attempt.folder).items() if each.name != "lock"}
        assert anywhere or after == before, f"files were written: {result}"
        return
    assert kind not in ("truncated", "foreign", "code"), f"not noticed: {result}"
    if not anywhere:
        assert_equal(outcome(attempt.folder), expected, result.about)
