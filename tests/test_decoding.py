"""Training images: decoded by torchvision, with the pixels and the refusals of PIL."""

import io
import os

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageFilter
from synthetic import write_image
from training import command_line, load_checkpoint, log_records, run_train, write_data

# The marker of the frame, before its height and width.
FRAME = b"\xff\xc0\x00\x11\x08"


def photograph(width=61, height=47):
    """An image whose JPEG has details in all channels."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    photograph().convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pil_pixels(imagenet, path):
    return torch.from_numpy(np.array(imagenet.images.read_rgb(path))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True, "quality": 95}),
        ("RGB", {"subsampling": 0, "optimize": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_jpegs_have_the_pixels_of_pil(imagenet, tmp_path, mode, options):
    (tmp_path / "a.jpg").write_bytes(jpeg(mode, **options))
    pixels = imagenet.decoding.read_pixels(tmp_path / "a.jpg")
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 47, 61)
    assert torch.equal(pixels, pil_pixels(imagenet, tmp_path / "a.jpg"))


def test_jpegs_are_decoded_by_torchvision(imagenet, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(imagenet.decoding, "decode_rgb", None)
    assert imagenet.decoding.read_pixels(tmp_path / "a.jpg").shape == (3, 47, 61)


@pytest.mark.filterwarnings("ignore:Palette images")
def test_other_formats_are_read_by_pil(imagenet, tmp_path):
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(gray).save(tmp_path / "gray.png")
    palette = photograph().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=b"\0\1")
    palette.save(tmp_path / "animated.webp", "GIF", save_all=True, append_images=[palette])
    photograph().save(tmp_path / "png.jpg", "PNG")
    for path in tmp_path.iterdir():
        pixels = imagenet.decoding.read_pixels(path)
        assert torch.equal(pixels, pil_pixels(imagenet, path)), path
    assert torch.equal(
        imagenet.decoding.read_pixels(tmp_path / "gray.png")[0].flatten(),
        torch.arange(256, dtype=torch.uint8),
    )


def test_jpegs_are_not_rotated(imagenet, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    (tmp_path / "a.jpg").write_bytes(jpeg(exif=exif))
    assert imagenet.decoding.read_pixels(tmp_path / "a.jpg").shape == (3, 47, 61)


def verdict(read, path, error):
    try:
        return read(path)
    except error as refused:
        return str(refused)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_damaged_jpeg_is_refused_if_pil_refuses_it(imagenet, tmp_path, options):
    """Cut off anywhere, above all near the end, or with wrong bytes. libjpeg only warns of it."""
    good, rng = jpeg(**options), np.random.default_rng(0)
    damaged = [good[:-cut] for cut in (*range(1, 40), len(good) // 2, len(good) - 700)]
    for _ in range(60):
        content = bytearray(good)
        content[rng.integers(len(good))] = rng.integers(256)
        damaged.append(bytes(content))
    refused, path = 0, tmp_path / "a.jpg"
    for content in damaged:
        path.write_bytes(content)
        error = imagenet.command_line.UserError
        expected = verdict(lambda path: pil_pixels(imagenet, path), path, error)
        actual = verdict(imagenet.decoding.read_pixels, path, error)
        if isinstance(expected, str):
            refused += 1
            assert actual == expected
        else:
            assert torch.equal(actual, expected)
    assert 40 < refused < len(damaged)


def test_warnings_of_libjpeg_are_not_shown(imagenet, tmp_path, monkeypatch, capfd):
    """In a worker. The main process, whose other threads may print, decodes without silence."""
    content = jpeg()
    (tmp_path / "a.jpg").write_bytes(content[:-2] + bytes(100) + content[-2:])
    pixels = imagenet.decoding.read_pixels(tmp_path / "a.jpg")
    assert torch.equal(pixels, pil_pixels(imagenet, tmp_path / "a.jpg"))
    assert "Corrupt JPEG" in capfd.readouterr().err
    monkeypatch.setattr(imagenet.decoding, "get_worker_info", lambda: "of a worker")
    number = next_descriptor()
    assert torch.equal(imagenet.decoding.read_pixels(tmp_path / "a.jpg"), pixels)
    assert next_descriptor() == number  # none is left open
    os.write(2, b"still there\n")
    assert capfd.readouterr() == ("", "still there\n")


def next_descriptor():
    """Return the number of the next file to be opened."""
    with open(os.devnull) as file:
        return file.fileno()


def test_a_worker_without_standard_error_decodes(imagenet, tmp_path, monkeypatch):
    def closed(descriptor):
        raise OSError(9, "Bad file descriptor")

    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(imagenet.decoding, "get_worker_info", lambda: "of a worker")
    monkeypatch.setattr(os, "dup", closed)
    assert imagenet.decoding.read_pixels(tmp_path / "a.jpg").shape == (3, 47, 61)


def test_lines_of_other_threads_are_not_lost_while_the_main_process_decodes(
    imagenet, tmp_path, monkeypatch, capfd
):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    decode = imagenet.decoding.decode_plain_jpeg

    def decode_while_another_thread_prints(data):
        os.write(2, b"error: no sign of life\n")
        return decode(data)

    monkeypatch.setattr(imagenet.decoding, "decode_plain_jpeg", decode_while_another_thread_prints)
    imagenet.decoding.read_pixels(tmp_path / "a.jpg")
    assert capfd.readouterr().err == "error: no sign of life\n"


def test_a_jpeg_that_declares_too_many_pixels_is_not_decoded(imagenet, tmp_path, monkeypatch):
    content = jpeg()
    start = content.index(FRAME) + len(FRAME)
    huge = (12_000).to_bytes(2) * 2
    (tmp_path / "a.jpg").write_bytes(content[:start] + huge + content[start + 4 :])
    monkeypatch.setattr(torchvision.io, "decode_jpeg", None)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(imagenet.command_line.UserError, match=r"a.jpg: .*12000 x 12000 pixels"),
    ):
        imagenet.decoding.read_pixels(tmp_path / "a.jpg")


def test_reading_is_tried_again_after_an_error_that_can_pass(imagenet, tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.jpg")
    content, reads = path.read_bytes(), []

    def read(path):
        reads.append(path)
        if len(reads) == 1:
            raise OSError(5, "Input/output error")
        return content

    monkeypatch.setattr("pathlib.Path.read_bytes", read)
    monkeypatch.setattr(imagenet.images.time, "sleep", lambda seconds: None)
    assert imagenet.decoding.read_pixels(path).shape == (3, 30, 40) and len(reads) == 2
    with pytest.raises(imagenet.command_line.UserError, match="nowhere.jpg: no such file"):
        monkeypatch.undo()
        imagenet.decoding.read_pixels(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_without_torchvision_s_decoder_pil_reads_the_images_and_a_line_says_so(
    imagenet, tmp_path, monkeypatch, capsys, error
):
    """torchvision may be built without it, and has announced to remove it."""

    def decode_jpeg(data, mode):
        raise error("no libjpeg support")

    assert imagenet.decoding.choose_decoder() == imagenet.decoding.read_pixels
    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode_jpeg)
    data = write_data(tmp_path / "data")
    (data / "train" / "cat" / "a.jpg").write_bytes(jpeg())
    assert run_train(imagenet, command_line(data, tmp_path / "run", "--epochs", "1")) == 0
    note = "note: PIL decodes the training images, which takes longer, because torchvision can't "
    assert capsys.readouterr().out.count(f"{note}(no libjpeg support)\n") == 1


def test_a_run_of_an_older_version_is_resumed_with_a_note(imagenet, tmp_path, capsys):
    argv = command_line(write_data(tmp_path / "data"), tmp_path / "run", "--resume", "auto")
    assert run_train(imagenet, [*argv, "--epochs", "1"]) == 0
    assert run_train(imagenet, [*argv, "--epochs", "1"]) == 0
    assert "older version" not in capsys.readouterr().out
    assert [record["decoding"] for record in log_records(tmp_path / "run")] == [2]
    content = load_checkpoint(tmp_path / "run")
    assert content.pop("decoding") == 2
    torch.save(content, tmp_path / "run" / "checkpoint.pt")
    assert run_train(imagenet, argv) == 0
    assert "note: saved by an older version, which decoded" in capsys.readouterr().out
