"""Images that are damaged, odd, or none."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import training
from PIL import Image
from synthetic import write_image

from torture.attempts import Attempt, Fault, expect, expect_done_or_refused
from torture.readers import predict, prepare_readers
from torture.runs import use_small_network
from torture.scripts import CIFAR, EVALUATION, TRAINING


class Picture(NamedTuple):
    """An image file, and the RGB pixels that it must give; None: it can't be read."""

    path: Path
    pixels: np.ndarray | None


def noise(draws: random.Random, *shape: int) -> np.ndarray:
    return np.random.default_rng(draws.randrange(2**32)).integers(0, 256, shape, dtype=np.uint8)


def picture(draws: random.Random, width: int = 0, height: int = 0) -> Image.Image:
    width, height = width or draws.randint(8, 80), height or draws.randint(8, 80)
    return Image.fromarray(noise(draws, height, width, 3))


def saved(image: Image.Image, path: Path, **options) -> Picture:
    """Save an image as it is; PIL's own conversion says what it must be read as."""
    image.save(path, **options)
    with Image.open(path) as again:
        return Picture(path, np.array(again.convert("RGB")))


def truncated(folder: Path, draws: random.Random) -> Picture:
    kind = draws.choice(["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
    buffer = io.BytesIO()
    picture(draws).save(buffer, kind)
    path = folder / f"truncated.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: draws.randrange(1, len(buffer.getvalue()) * 9 // 10)])
    return Picture(path, None)


def empty(folder: Path, draws: random.Random) -> Picture:
    path = folder / "empty.png"
    path.touch()
    return Picture(path, None)


def text_file(folder: Path, draws: random.Random) -> Picture:
    path = folder / "notes.jpg"
    path.write_text("not an image\n" * draws.randint(1, 100))
    return Picture(path, None)


def one_pixel(folder: Path, draws: random.Random) -> Picture:
    return saved(picture(draws, 1, 1), folder / draws.choice(["one.png", "one.jpg", "one.bmp"]))


def very_wide(folder: Path, draws: random.Random) -> Picture:
    size = draws.choice([(10_000, 1), (1, 10_000)])
    return saved(picture(draws, *size), folder / "wide.png")


def cmyk(folder: Path, draws: random.Random) -> Picture:
    return saved(Image.fromarray(noise(draws, 20, 30, 4), "CMYK"), folder / "cmyk.jpg")


def deep_gray(folder: Path, draws: random.Random) -> Picture:
    values = np.random.default_rng(draws.randrange(2**32)).integers(0, 65536, (20, 30))
    path = folder / draws.choice(["gray.png", "gray.tiff"])
    Image.fromarray(values.astype(np.uint16)).save(path)
    return Picture(path, (values[..., None] / 257).round().astype(np.uint8).repeat(3, -1))


def palette(folder: Path, draws: random.Random) -> Picture:
    image = picture(draws).quantize(draws.choice([2, 16, 256]))
    transparency = draws.choice([0, bytes(noise(draws, 2))])
    return saved(image, folder / "palette.png", transparency=transparency)


def animated(folder: Path, draws: random.Random) -> Picture:
    frames = [picture(draws, 20, 30) for _ in range(3)]
    path = folder / "animated.webp"  # a GIF under the name of a kind that is looked for
    return saved(frames[0], path, format="GIF", save_all=True, append_images=frames[1:])


def rotated(folder: Path, draws: random.Random) -> Picture:
    exif = Image.Exif()
    exif[0x0112] = draws.randint(2, 8)  # the tag of orientation
    return saved(picture(draws), folder / "rotated.jpg", exif=exif)


def bomb(folder: Path, draws: random.Random) -> Picture:
    """A file of some kB that claims more pixels than memory holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    side = draws.choice([12_000, 30_000, 2**31 - 1])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    path = folder / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))
    return Picture(path, None)


def strange_name(folder: Path, draws: random.Random) -> Picture:
    name = draws.choice(
        ["два слова.png", "猫 と 犬.PNG", "-a 'b' \"c\".Jpg", "line\nbreak.png", "é%s{}.png"]
    )
    return saved(picture(draws), folder / name)


def loop_of_links(folder: Path, draws: random.Random) -> Picture:
    path = folder / "one.png"
    path.symlink_to("other.png")
    (folder / "other.png").symlink_to("one.png")
    if draws.random() < 0.5:
        (folder / "folder").symlink_to(folder)
    return Picture(path, None)


def beneath_a_file(folder: Path, draws: random.Random) -> Picture:
    """As root one may open any file; but there is none below a regular one."""
    write_image(folder / "file.png")
    return Picture(folder / "file.png" / "image.png", None)


KINDS: tuple[Callable[[Path, random.Random], Picture], ...] = (
    *(truncated, empty, text_file, one_pixel, very_wide, cmyk, deep_gray, palette, animated),
    *(rotated, bomb, strange_name, loop_of_links, beneath_a_file),
)


def odd_image(attempt: Attempt) -> None:
    """Read it by itself, and through a command line in which it is one image of several."""
    kind = KINDS[attempt.index % len(KINDS)]
    root = training.write_data(attempt.folder / "data")
    made = kind(root / "train" / "cat", attempt.draws)
    expect_pixels(attempt, made)
    how = attempt.draws.randrange(3)
    if how == 0 or kind is beneath_a_file:  # no listing of a folder would find that one
        words = predict(attempt, attempt.shared / "evaluation.pt")
        words[words.index("--predict") + 1 : -2] = [str(made.path)]
        ended = attempt.run(EVALUATION, words)
    elif how == 1:
        words = ["--epochs", "1", "-j", str(attempt.draws.randrange(2))]
        words = training.command_line(root, attempt.folder / "run", *words)
        ended = attempt.run(TRAINING, words, use_small_network)
    else:
        words = "--dataset folder --image-size 8 --depth 10 --width 0.25 --epochs 1".split()
        words += ["--dataroot", str(root), "--save", str(attempt.folder / "run")]
        ended = attempt.run(CIFAR, words)
    named = " ".join(str(made.path).split())  # line breaks in a name are folded
    if kind is loop_of_links:
        named = str(made.path.parent)  # any link of the loop
    done = expect_done_or_refused(ended, named)
    expect(done or made.pixels is None, "an image that can be read was refused", ended)
    links = kind is loop_of_links  # refused, or left out where a folder is listed
    expect(not done or made.pixels is not None or links, "an unreadable image was used", ended)


def expect_pixels(attempt: Attempt, made: Picture) -> None:
    """`read_rgb` of either folder gives these pixels, or refuses in a message with the path."""
    for script in (CIFAR, EVALUATION):
        try:
            pixels = np.array(script.folder.images.read_rgb(made.path))
        except script.folder.command_line.UserError as refusal:
            expect(made.pixels is None, "refused", refusal)
            expect(str(made.path) in str(refusal), "expected the path in", refusal)
        else:
            expect(made.pixels is not None, "read what can't be read", made.path)
            expect(np.array_equal(pixels, made.pixels), "other pixels than PIL's", made.path)


FAULTS = [
    Fault(
        "images",
        "images: truncated, empty, a text file, 1×1, 10,000×1, CMYK, 16-bit gray, palette with "
        "transparency, animated, EXIF-rotated, a bomb, strange names, loops of links, no file",
        100,
        "PIL's RGB pixels (16-bit gray scaled to 8, EXIF not applied), or one line with the path",
        odd_image,
        prepare_readers,
    ),
]
