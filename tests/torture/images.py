"""Damaged and unusual images."""

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

from torture.attempts import Attempt, Fault, expect, expect_success_or_user_error
from torture.readers import predict, prepare_readers
from torture.runs import use_small_network
from torture.scripts import CIFAR, EVALUATION, TRAINING


class ImageCase(NamedTuple):
    """An image file and the RGB pixels expected from it; None if it must be refused."""

    path: Path
    pixels: np.ndarray | None


def noise(rng: random.Random, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, shape, dtype=np.uint8)


def random_image(rng: random.Random, width: int = 0, height: int = 0) -> Image.Image:
    width, height = width or rng.randint(8, 80), height or rng.randint(8, 80)
    return Image.fromarray(noise(rng, height, width, 3))


def saved(image: Image.Image, path: Path, **options) -> ImageCase:
    """Save an image; the expected pixels are those of PIL's own conversion."""
    image.save(path, **options)
    with Image.open(path) as again:
        return ImageCase(path, np.array(again.convert("RGB")))


def truncated(folder: Path, rng: random.Random) -> ImageCase:
    kind = rng.choice(["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
    buffer = io.BytesIO()
    random_image(rng).save(buffer, kind)
    path = folder / f"truncated.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: rng.randrange(1, len(buffer.getvalue()) * 9 // 10)])
    return ImageCase(path, None)


def empty(folder: Path, rng: random.Random) -> ImageCase:
    path = folder / "empty.png"
    path.touch()
    return ImageCase(path, None)


def text_file(folder: Path, rng: random.Random) -> ImageCase:
    path = folder / "notes.jpg"
    path.write_text("not an image\n" * rng.randint(1, 100))
    return ImageCase(path, None)


def one_pixel(folder: Path, rng: random.Random) -> ImageCase:
    return saved(random_image(rng, 1, 1), folder / rng.choice(["one.png", "one.jpg", "one.bmp"]))


def very_wide(folder: Path, rng: random.Random) -> ImageCase:
    size = rng.choice([(10_000, 1), (1, 10_000)])
    return saved(random_image(rng, *size), folder / "wide.png")


def cmyk(folder: Path, rng: random.Random) -> ImageCase:
    return saved(Image.fromarray(noise(rng, 20, 30, 4), "CMYK"), folder / "cmyk.jpg")


def deep_gray(folder: Path, rng: random.Random) -> ImageCase:
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 65536, (20, 30))
    path = folder / rng.choice(["gray.png", "gray.tiff"])
    Image.fromarray(values.astype(np.uint16)).save(path)
    return ImageCase(path, (values[..., None] / 257).round().astype(np.uint8).repeat(3, -1))


def palette(folder: Path, rng: random.Random) -> ImageCase:
    image = random_image(rng).quantize(rng.choice([2, 16, 256]))
    transparency = rng.choice([0, bytes(noise(rng, 2))])
    return saved(image, folder / "palette.png", transparency=transparency)


def animated(folder: Path, rng: random.Random) -> ImageCase:
    frames = [random_image(rng, 20, 30) for _ in range(3)]
    path = folder / "animated.webp"  # a GIF with the suffix of an accepted format
    return saved(frames[0], path, format="GIF", save_all=True, append_images=frames[1:])


def rotated(folder: Path, rng: random.Random) -> ImageCase:
    exif = Image.Exif()
    exif[0x0112] = rng.randint(2, 8)  # orientation
    return saved(random_image(rng), folder / "rotated.jpg", exif=exif)


def bomb(folder: Path, rng: random.Random) -> ImageCase:
    """A file of a few kB that declares more pixels than fit in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        content = kind + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    side = rng.choice([12_000, 30_000, 2**31 - 1])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    path = folder / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))
    return ImageCase(path, None)


def strange_name(folder: Path, rng: random.Random) -> ImageCase:
    name = rng.choice(
        ["два слова.png", "猫 と 犬.PNG", "-a 'b' \"c\".Jpg", "line\nbreak.png", "é%s{}.png"]
    )
    return saved(random_image(rng), folder / name)


def loop_of_links(folder: Path, rng: random.Random) -> ImageCase:
    path = folder / "one.png"
    path.symlink_to("other.png")
    (folder / "other.png").symlink_to("one.png")
    if rng.random() < 0.5:
        (folder / "folder").symlink_to(folder)
    return ImageCase(path, None)


def below_a_file(folder: Path, rng: random.Random) -> ImageCase:
    """A path that cannot exist: root can open even files without read permission."""
    write_image(folder / "file.png")
    return ImageCase(folder / "file.png" / "image.png", None)


KINDS: tuple[Callable[[Path, random.Random], ImageCase], ...] = (
    *(truncated, empty, text_file, one_pixel, very_wide, cmyk, deep_gray, palette, animated),
    *(rotated, bomb, strange_name, loop_of_links, below_a_file),
)


def odd_image(attempt: Attempt) -> None:
    """Read an image directly, and through a script for which it is one of several."""
    kind = KINDS[attempt.index % len(KINDS)]
    root = training.write_data(attempt.folder / "data")
    case = kind(root / "train" / "cat", attempt.rng)
    expect_pixels(attempt, case)
    how = attempt.rng.randrange(3)
    if how == 0 or kind is below_a_file:  # listing a folder cannot find it
        argv = predict(attempt, attempt.shared / "evaluation.pt")
        argv[argv.index("--predict") + 1 : -2] = [str(case.path)]
        result = attempt.run(EVALUATION, argv)
    elif how == 1:
        argv = ["--epochs", "1", "-j", str(attempt.rng.randrange(2))]
        argv = training.command_line(root, attempt.folder / "run", *argv)
        result = attempt.run(TRAINING, argv, use_small_network)
    else:
        argv = "--dataset folder --image-size 8 --depth 10 --width 0.25 --epochs 1".split()
        argv += ["--dataroot", str(root), "--save", str(attempt.folder / "run")]
        result = attempt.run(CIFAR, argv)
    mention = " ".join(str(case.path).split())  # as in one-line errors
    if kind is loop_of_links:
        mention = str(case.path.parent)  # any link of the loop
    done = expect_success_or_user_error(result, mention)
    expect(done or case.pixels is None, "a readable image was refused", result)
    may_skip = kind is loop_of_links  # skipped when a folder is listed
    expect(not done or case.pixels is not None or may_skip, "an unreadable image was used", result)


def expect_pixels(attempt: Attempt, case: ImageCase) -> None:
    """Expect these pixels, or an error with the path, from every function that reads images."""
    readers = [(script, script.folder.images.read_rgb) for script in (CIFAR, EVALUATION)]
    read_pixels = TRAINING.folder.decoding.read_pixels
    readers.append((TRAINING, lambda path: read_pixels(path).permute(1, 2, 0)))
    for script, read in readers:
        try:
            pixels = np.array(read(case.path))
        except script.folder.command_line.UserError as error:
            expect(case.pixels is None, "a readable image was refused", error)
            expect(str(case.path) in str(error), "expected the path in the message", error)
        else:
            expect(case.pixels is not None, "an unreadable image was read", case.path)
            expect(np.array_equal(pixels, case.pixels), "wrong pixels", case.path)


FAULTS = [
    Fault(
        "images",
        "images: truncated, empty, text file, 1×1, 10,000×1, CMYK, 16-bit gray, palette with "
        "transparency, animated, EXIF-rotated, decompression bomb, strange names, link loops, "
        "missing file",
        100,
        "PIL's RGB pixels (16-bit gray scaled to 8-bit, EXIF ignored), or a one-line error with "
        "the path",
        odd_image,
        prepare_readers,
    ),
]
