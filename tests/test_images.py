"""Image files: their order, decoding, decompression bombs and warnings."""

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import write_image
from torchvision.datasets import ImageFolder


def test_decompression_bomb_is_an_error(wrn, tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(wrn.command_line.UserError, match="20 x 20 pixels"),
    ):
        wrn.images.read_rgb(path)


def test_16_bit_grayscale_is_scaled_to_8_bits(wrn, tmp_path):
    """PIL would clip it to white. 257 times a value of 8 bits is exactly that value."""
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values * 257).save(tmp_path / "x.png")
    pixels = np.asarray(wrn.images.read_rgb(tmp_path / "x.png"))
    assert np.array_equal(pixels, np.repeat(values[..., None], 3, -1))


def test_images_are_not_rotated(wrn, tmp_path):
    """Neither the released code nor torchvision applies the orientation of the EXIF data."""
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to show it
    image.save(tmp_path / "x.jpg", exif=exif)
    assert wrn.images.read_rgb(tmp_path / "x.jpg").size == (40, 30)


def test_images_are_listed_in_the_order_of_torchvision(wrn, tmp_path):
    """In folders at several depths, whatever order the file system has."""
    for name in ("b", "a", "B", "a b", "aa", "z", "c"):
        for folder in (name, f"{name}/x", f"{name}/x/y", f"{name}/w"):
            write_image(tmp_path / "one" / folder / "1.png", size=(1, 1))
            write_image(tmp_path / "two" / folder / "2.JPEG", size=(1, 1))
    listing, expected = wrn.images.list_images(tmp_path), ImageFolder(tmp_path)
    assert listing.classes == expected.classes == ["one", "two"]
    pairs = zip(map(str, listing.paths), listing.labels, strict=True)
    assert list(pairs) == expected.samples and len(expected.samples) == 56


def test_warnings_of_pil_are_not_shown(wrn, tmp_path):
    path = tmp_path / "x.png"
    Image.new("P", (4, 4)).save(path, transparency=b"\0\1")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert wrn.command_line.exit_status(lambda: wrn.images.read_rgb(path)) == 0
    assert not shown


class FailingReads:
    """Let the first reads of files fail with an error; record the pauses in between."""

    def __init__(self, images, monkeypatch, number, failures):
        self.reads, self.pauses = 0, []
        read_bytes = Path.read_bytes

        def read(path):
            self.reads += 1
            if self.reads <= failures:
                raise OSError(number, os.strerror(number))
            return read_bytes(path)

        monkeypatch.setattr(Path, "read_bytes", read)
        monkeypatch.setattr(images.time, "sleep", self.pauses.append)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_is_tried_again_after_an_error_that_can_pass(
    wrn, tmp_path, monkeypatch, capsys, number
):
    path = write_image(tmp_path / "x.png")
    reads = FailingReads(wrn.images, monkeypatch, number, failures=3)
    assert wrn.images.read_rgb(path).size == (40, 30)
    assert reads.reads == 4 and reads.pauses == sorted(reads.pauses) and len(reads.pauses) == 3
    assert capsys.readouterr().err.count(f"{path}: {os.strerror(number)}; trying again in ") == 3


def test_the_fourth_failed_read_is_an_error(wrn, tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png")
    reads = FailingReads(wrn.images, monkeypatch, errno.EIO, failures=4)
    with pytest.raises(
        wrn.command_line.UserError, match="x.png: can't be read .Input/output error.; check"
    ):
        wrn.images.read_rgb(path)
    assert reads.reads == 4


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP])
def test_a_lasting_error_is_reported_at_once(wrn, tmp_path, monkeypatch, number):
    reads = FailingReads(wrn.images, monkeypatch, number, failures=1)
    with pytest.raises(wrn.command_line.UserError, match="x.png"):
        wrn.images.read_rgb(write_image(tmp_path / "x.png"))
    assert reads.pauses == []


def test_a_damaged_file_is_read_once(wrn, tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png")
    path.write_bytes(path.read_bytes()[:500])
    reads = FailingReads(wrn.images, monkeypatch, errno.EIO, failures=0)
    with pytest.raises(
        wrn.command_line.UserError, match="x.png: not an image .*; repair or remove"
    ):
        wrn.images.read_rgb(path)
    assert reads.reads == 1
