"""Decoding of image files: decompression bombs and warnings."""

import errno
import os
import warnings
from pathlib import Path

import pytest
from PIL import Image
from synthetic import write_image


def test_decompression_bomb_is_an_error(wrn, tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(wrn.command_line.UserError, match="20 x 20 pixels"),
    ):
        wrn.images.read_rgb(path)


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
    with pytest.raises(wrn.command_line.UserError, match="x.png: .*Input/output error"):
        wrn.images.read_rgb(path)
    assert reads.reads == 4


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_a_lasting_error_is_reported_at_once(wrn, tmp_path, monkeypatch, number):
    reads = FailingReads(wrn.images, monkeypatch, number, failures=1)
    with pytest.raises(wrn.command_line.UserError, match="x.png"):
        wrn.images.read_rgb(write_image(tmp_path / "x.png"))
    assert reads.pauses == []


def test_a_damaged_file_is_read_once(wrn, tmp_path, monkeypatch):
    path = write_image(tmp_path / "x.png")
    path.write_bytes(path.read_bytes()[:500])
    reads = FailingReads(wrn.images, monkeypatch, errno.EIO, failures=0)
    with pytest.raises(wrn.command_line.UserError, match="x.png: not an image that can be read"):
        wrn.images.read_rgb(path)
    assert reads.reads == 1
