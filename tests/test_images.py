"""Decoding of image files: decompression bombs and warnings."""

import warnings

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
