"""Damaged and odd images, odd folders of images, and odd command lines."""

import io
import random
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from conftest import ScriptFolder
from halves import load, write_data
from PIL import Image
from synthetic import write_image
from torture import checkpoints
from torture.harness import SHARED, Attempt, Result

WRN, IMAGENET = ScriptFolder("wrn_DKS"), ScriptFolder("imagenet")
READ = [(WRN.images.read_rgb, WRN.command_line.UserError)]  # with what they raise
READ += [(IMAGENET.data.read_pixels, IMAGENET.command_line.UserError)]
FLAGS = IMAGENET.flags
PARSERS = {  # with the indices in `checkpoints.READERS` of what they parse
    "wrn": (WRN.flags.make_parser(), (0, 0, 4, 6)),
    "train": (FLAGS.make_parser(FLAGS.Config), (1,)),
    "test": (FLAGS.make_parser(FLAGS.EvaluationConfig), (5, 7)),
}
TRAININGS = {"wrn": "--dataset folder --image-size 8 --depth 10 --width 0.25"}
TRAININGS["train"] = "-a resnet18 --image-size 40 -j 0"
MODES = "1 L LA P RGB RGBA CMYK YCbCr LAB I I;16 F".split()
FORMATS = "PNG JPEG BMP WEBP TIFF PPM GIF".split()
SUFFIXES = ".png .jpg .JPEG .jfif .bmp .webp .tiff .ppm .pgm".split()
KINDS = "whole whole whole truncated flipped text bomb loop folder".split()
NAMES = ["cat", "два слова", "猫 と 犬", "-a 'b' \"c\"", "line\nbreak", "é%s{}", "e\u0301%s{}"]
NAMES += [" x ", "a\udcffb", "CON", "val", "[1]", "0", "é" * 120]
VALUES = (
    *("", " ", "-1", "0", "-0.5", "0.5", "1", "2", "nan", "inf", "-inf", "1e400", "1e-400"),
    *("64", "1204", "9" * 10, "9" * 30, "1e9", "0x10", "٣", "word", "--", "[]", "[1]", "[3,2,1]"),
    *("[0]", "{}", "None", "true", ".", "file/x", "cpu", "cuda:9", "dks", "auto"),
    *("a\nb", "%s%n", "é" * 300, "resnet50", "cosine", "new", "run", "file", "folder"),
)


def train(attempt: Attempt, program: str, root: Path) -> Result:
    """Train on a folder for an epoch."""
    options = f"{TRAININGS[program]} -b 4 --epochs 1 --device cpu --save {program} --dataroot"
    return attempt.run(program, [*options.split(), root])


def encoded(rng: random.Random) -> bytes:
    """Return an image of a random size, mode and format."""
    other = rng.randint(2, 90), rng.randint(2, 90)
    width, height = rng.choice([(1, 1), (10_000, 1), (1, 3000), *[other] * 7])
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 4))
    image = Image.fromarray(values.astype(np.uint8)[..., :3])
    image = image.quantize(rng.choice([2, 16, 256])) if rng.random() < 0.2 else image
    deep = Image.fromarray((values[..., 0] * 257 - 128).clip(0).astype(np.uint16))
    options, exif = {"transparency": 0} if rng.random() < 0.2 else {}, Image.Exif()
    exif[0x0112] = rng.randint(1, 8)  # orientation
    while True:
        mode, kind, file = rng.choice(MODES), rng.choice(FORMATS), io.BytesIO()
        more = {"save_all": True, "append_images": [image]} if kind in ("GIF", "TIFF") else {}
        with suppress(OSError, ValueError, TypeError, KeyError):  # no such mode in this format
            converted = deep if mode == "I;16" else image.convert(mode)
            converted.save(file, kind, exif=exif, **more, **options)
            return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray | None:
    """Return the pixels that PIL reads from a file; None if it must be refused."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS or image.mode in "IF":
                return None
            if image.mode.startswith("I;16"):
                gray = (np.asarray(image) / 257).round().astype(np.uint8)
                return np.stack([gray] * 3, 2)
            return np.array(image.convert("RGB"))
    except Exception:  # a decoder can raise almost any
        return None


def write_odd_image(path: Path, kind: str, rng: random.Random) -> np.ndarray | None:
    """Write an image; return its pixels if it can be read."""
    if kind in ("loop", "folder"):
        path.symlink_to(path.name) if kind == "loop" else path.mkdir()
        return None
    data = bytearray(encoded(rng))
    place = rng.randrange(len(data))
    if kind == "truncated":
        del data[place:]
    elif kind == "flipped":
        data[place] ^= rng.randrange(1, 256)
    elif kind == "text":
        data[:] = b"text\n" * place
    elif kind == "bomb":  # a PNG that declares more pixels than it has
        file = io.BytesIO()
        Image.new("RGB", (9, 9)).save(file, "PNG")
        data[:] = file.getvalue()
        data[16:24] = struct.pack(">II", *[rng.choice([12_000, 30_000, 2**31 - 1])] * 2)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return pixels_of(data)


def images(attempt: Attempt) -> None:
    """images of all modes and formats, with odd names, sizes and suffixes; truncated, overwritten,
    not images, loops of links, decompression bombs; to train on and to predict

    PIL's RGB pixels (16-bit gray scaled to 8 bits, EXIF ignored), or one line with the path
    """
    rng, folder = attempt.rng, attempt.folder / "data" / "train" / "cat"
    write_data(attempt.folder / "data")
    path, kind = folder / (rng.choice(NAMES) + rng.choice(SUFFIXES)), rng.choice(KINDS)
    pixels = write_odd_image(path, kind, rng)
    for read, error_type in READ:
        with SHARED:  # filters of warnings are global
            try:
                found = read(path)
            except error_type as error:
                assert str(path) in str(error), f"{kind}: no path in {error}"
                assert pixels is None or kind != "whole", f"{kind}: refused: {error}"
                continue
        found = found.permute(1, 2, 0) if isinstance(found, torch.Tensor) else found
        assert pixels is not None and np.array_equal(found, pixels), f"{kind}: wrong pixels: {path}"
    name = " ".join(str(path).split()).encode(errors="backslashreplace").decode()
    if attempt.index % 4 == 0:
        result = train(attempt, rng.choice(list(TRAININGS)), attempt.folder / "data")
        done = result.expect_success_or_error(name if kind != "loop" else "cat")
    elif attempt.index % 4 == 1 and kind != "folder":
        reader, what = rng.choice((6, 7)), rng.choice((path, folder))
        checkpoint = checkpoints.source(attempt, reader)
        program, argv = checkpoints.command(attempt, reader, checkpoint)
        argv[argv.index("--predict") + 1] = what
        done = attempt.run(program, argv).expect_success_or_error(name, 1 + (what == path))
    else:
        return
    assert done == (pixels is not None) or kind in ("flipped", "loop", "folder"), f"{kind}: {path}"


def write_odd_folder(root: Path, rng: random.Random) -> tuple[dict, dict, bool]:
    """Write a data folder; return the images by class, to train and to test, and if it is right."""
    classes, parts = rng.sample(NAMES, rng.choice((1, 2, 2, 3, 3, 4))), ({}, {})
    folders, right = (root / "train", root / rng.choice(("val", "val", "valid", "test"))), True
    for part, folder in enumerate(folders):
        for name in [each for each in classes if rng.random() < 0.97 - 0.1 * part]:
            parts[part][name] = rng.choice((1, 1, 2, 3, 3)) if rng.random() < 0.97 else 0
            (folder / name).mkdir(parents=True)
            for number in range(parts[part][name]):
                deep = "/".join(rng.choices(NAMES[:6], k=rng.choice((0, 0, 0, 1, 3))))
                write_image(folder / name / deep / f"{number}{rng.choice(SUFFIXES)}", number)
    for part, folder in enumerate(folders):
        for _ in range(rng.randrange(3) if parts[part] else 0):
            own, kind = folder / rng.choice(list(parts[part])), rng.randrange(10)
            if kind < 2:  # a loop of links
                (own / f"loop {rng.random()}").symlink_to(own.resolve())
            elif kind < 4:  # debris of file managers
                write_image(own / "__MACOSX" / "._0.png")
                write_image(folder / ".hidden" / "0.png")
            elif kind < 6:  # no images
                (own / "notes.txt").touch()
                (folder / "README.md").touch()
            elif kind < 8 and not own.is_symlink():  # a class in another place
                own.symlink_to(own.rename(root / f"elsewhere {rng.random()}"))
            elif kind == 8:  # a link to nothing
                (folder / f"nothing {rng.random()}").symlink_to(root / "nothing")
                right = False
            elif kind == 9:
                write_image(folder / "beside the classes.png")
                right = False
    right &= all([*parts[0].values(), *parts[1].values(), len(parts[0]) > 1, len(parts[1]) > 0])
    return *parts, right and parts[1].keys() <= parts[0].keys()


def folders(attempt: Attempt) -> None:
    """data folders: odd names, nested folders, loops of links, links to elsewhere and to nothing,
    debris of file managers; classes that are empty or only in one part; one class; no folder

    the right classes and numbers of images, or one line
    """
    root = attempt.folder / attempt.rng.choice(NAMES)
    root.mkdir()
    to_train, to_test, right = write_odd_folder(root, attempt.rng)
    for program in TRAININGS:
        result = train(attempt, program, root)
        if not right:
            result.expect_error()
            continue
        result.expect_success()
        saved = load(attempt.folder / program)
        counts = saved["data"]["train_images"], saved["data"]["test_images"]
        assert counts == (sum(to_train.values()), sum(to_test.values())), f"{counts}: {result}"
        assert saved["metadata"]["classes"] == sorted(to_train), f"other classes: {result}"


def command_lines(attempt: Attempt) -> None:
    """command lines of the three programs: each option with values of a wrong type, negative, zero,
    huge, empty or odd; options in pairs and threes

    a run (training is stopped after a step), or one line and status 2
    """
    rng, program = attempt.rng, list(PARSERS)[attempt.index % 3]
    actions = [each for each in PARSERS[program][0]._actions if each.dest != "help"]
    chosen = [actions[attempt.index // 3 % len(actions)]]
    chosen += rng.choices(actions, k=rng.choice((0, 0, 1, 2)))
    reader = rng.choice(PARSERS[program][1])
    checkpoint = checkpoints.source(attempt, reader)
    argv = checkpoints.command(attempt, reader, checkpoint)[1]
    if reader < 2 and rng.random() < 0.7:  # nothing is resumed
        argv = argv[: argv.index("--resume")]
    for action in chosen:
        flag = rng.choice(action.option_strings or [""])
        value = rng.choice((*VALUES, str(attempt.shared / "images")))
        words = [flag] if action.nargs == 0 and rng.random() < 0.7 else [flag, value]
        argv += (
            ["=".join(words)] if flag[:2] == "--" and rng.random() < 0.5 else filter(None, words)
        )
    shutil.copy(checkpoint, attempt.folder / "file")
    shutil.copytree(attempt.shared / "images", attempt.folder / "folder")
    result = attempt.run(program, argv, "0 1 SIGTERM", memory=7 * 2**30)  # torch maps half of it
    if result.status == 143:
        result.expect_error("stopped by SIGTERM", 143)
    else:
        result.expect_success_or_error(status=1 if result.status == 1 and reader > 5 else 2)
