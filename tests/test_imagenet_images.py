"""The images of imagenet/: the released pixels in tests; decoding and augmentation in training."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from small_imagenet import refusal
from synthetic import write_image
from torchvision import transforms

BICUBIC = Image.Resampling.BICUBIC


def photograph(width=61, height=47):
    """An image with details in all channels."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1))


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    photograph().convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation, which neither the released code nor torchvision applies
    return exif


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def evaluation_pixels(imagenet, path, size):
    transform = imagenet.augmentation.evaluation_transform(size)
    return imagenet.data.ImageFiles([path], [3], transform)[0][0]


def released_pixels(path, side=256, crop=224):
    """Apply the released preprocessing with PIL alone: (3, crop, crop) uint8."""
    with Image.open(path) as image:
        image = image.convert("RGB").resize((side, side), BICUBIC)
    start = round((side - crop) / 2)
    return to_tensor(image.crop((start, start, start + crop, start + crop)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(500, 375), (90, 200), (1, 1)])
def test_a_test_image_has_the_released_pixels(imagenet, tmp_path, mode, size):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    photograph(*size).convert(mode).save(path, exif=rotated())
    assert torch.equal(evaluation_pixels(imagenet, path, 224), released_pixels(path))


def test_the_resize_scales_with_the_crop(imagenet, tmp_path):
    path = write_image(tmp_path / "a.png", size=(300, 200))
    assert torch.equal(evaluation_pixels(imagenet, path, 67), released_pixels(path, 77, 67))


@pytest.mark.parametrize("workers", [0, 1])
def test_test_images_are_normalized_as_in_the_released_code(imagenet, tmp_path, workers):
    """To the last bit, with each of the 256 values in each channel."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    Image.fromarray(np.tile(values, (16, 16, 3))).save(tmp_path / "0.png")
    paths = [tmp_path / "0.png", write_image(tmp_path / "1.png", size=(50, 40))]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = [transforms.Resize((256, 256), BICUBIC), transforms.CenterCrop(224)]
    released = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([released(Image.open(path).convert("RGB")) for path in paths])
    transform = imagenet.augmentation.evaluation_transform(224)
    files = imagenet.data.ImageFiles(paths, [0, 0], transform)
    compute = imagenet.distributed.Compute(torch.device("cpu"))
    (batch,) = imagenet.batches.TestBatches(files, 2, workers, compute)
    assert batch.images.dtype == torch.float32 and torch.equal(batch.images, expected)


@pytest.mark.filterwarnings("ignore:Palette images")
def test_training_images_have_the_pixels_of_pil(imagenet, tmp_path):
    kinds = ({}, {"progressive": True}, {"subsampling": 0}, {"exif": rotated()})
    for index, options in enumerate(kinds):
        for mode in ("RGB", "L", "CMYK"):
            (tmp_path / f"{mode}{index}.jpg").write_bytes(jpeg(mode, **options))
    palette = photograph().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=b"\0\1")
    palette.save(tmp_path / "animated.webp", "GIF", save_all=True, append_images=[palette])
    for mode in ("RGBA", "LA"):
        photograph().convert(mode).save(tmp_path / f"{mode}.png")
    photograph().save(tmp_path / "png.jpg", "PNG")
    for path in tmp_path.iterdir():
        expected = to_tensor(Image.open(path).convert("RGB"))
        assert torch.equal(imagenet.data.read_pixels(path), expected), path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_16_bit_images_are_scaled_and_others_are_refused(imagenet, tmp_path, monkeypatch):
    """PIL would clip 16 bits to white. 257 times a value of 8 bits is exactly that value."""
    values, read = np.arange(256, dtype=np.uint16).reshape(16, 16), imagenet.data.read_pixels
    for name in ("a.png", "a.tif"):
        Image.fromarray(values * 257).save(tmp_path / name)
        expected = torch.from_numpy(values.astype(np.uint8)).expand(3, 16, 16)
        assert torch.equal(read(tmp_path / name), expected)
    for kind in (np.int32, np.float32):
        Image.fromarray(values.astype(kind)).save(tmp_path / "b.tif")
        assert "convert it to 8 or 16 bits" in refusal(imagenet, read, tmp_path / "b.tif")
    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert "a.jpg: not an image (Image size (2867" in refusal(imagenet, read, tmp_path / "a.jpg")
    assert "b.jpg: can't be read (No such" in refusal(imagenet, read, tmp_path / "b.jpg")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_damaged_jpeg_is_refused_if_pil_refuses_it(imagenet, tmp_path, options):
    """Cut off anywhere, above all near the end, or with wrong bytes."""
    good, rng = jpeg(**options), np.random.default_rng(0)
    damaged = [good[:-cut] for cut in (*range(1, 40), len(good) // 2, len(good))]
    for _ in range(40):
        content = bytearray(good)
        content[rng.integers(len(good))] = rng.integers(256)
        damaged.append(bytes(content))
    refused, path, read = 0, tmp_path / "a.jpg", imagenet.data.read_pixels
    for content in damaged:
        path.write_bytes(content)
        try:
            expected = to_tensor(imagenet.images.read_rgb(path))
        except imagenet.command_line.UserError as error:
            refused += 1
            assert str(error) == refusal(imagenet, read, path) and str(path) in str(error)
        else:
            assert torch.equal(read(path), expected)
    assert 30 < refused < len(damaged)


def test_crops_are_anywhere_and_half_of_them_are_flipped(imagenet):
    """The paper's augmentation: resize to a square, random crop, random flip, nothing else."""
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))  # 128 wide, 64 high
    image = Image.fromarray(np.stack([ramp, ramp.T.repeat(2, 1)[:64], ramp], -1))
    random_crop = imagenet.augmentation.RandomCrop(56, 300, seed=0)
    square = random_crop.fixed(to_tensor(image))
    expected = to_tensor(image.resize((64, 64), BICUBIC)).int()
    assert (square.int() - expected).abs().max() <= 1
    places = {
        square[:, top : top + 56, left : left + 56].flip([-1] * flip).numpy().tobytes(): place
        for place in np.ndindex(9, 9, 2)
        for top, left, flip in [place]
    }
    crops = [random_crop.random(square, 0, index) for index in range(300)]
    seen = [places[crop.numpy().tobytes()] for crop in crops]
    assert 120 < sum(flip for _, _, flip in seen) < 180
    for axis in range(2):
        assert {place[axis] for place in seen} == set(range(9))


def test_resized_crops_have_random_areas_and_aspect_ratios(imagenet):
    """8 to 100 % of the area, aspect ratios of 3/4 to 4/3, and half of them flipped.

    The pixels are their own coordinates, from which the crop is recovered.
    """
    rows, columns = np.mgrid[:200, :250]
    image = to_tensor(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))
    found = []
    for epoch, index in np.ndindex(2, 150):
        area = imagenet.augmentation.RandomArea(40, seed=0)
        crop = area.random(area.fixed(image), epoch, index)
        assert crop.shape == (3, 40, 40)
        x, y = crop[0].float().mean(0), crop[1].float().mean(1)
        width, height = ((each[-1] - each[0]).item() * 40 / 39 for each in (x, y))
        found.append((abs(width) * height / 50_000, abs(width) / height, width < 0))
    areas, ratios, flips = np.array(found).T
    assert 0.07 < areas.min() < 0.15 and 0.85 < areas.max() < 1.02
    assert 0.72 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.39
    assert 110 < flips.sum() < 190 and len(set(found)) > 290


@pytest.mark.parametrize("name", ["crop", "resized-crop"])
def test_augmentation_is_a_function_of_seed_epoch_and_image(imagenet, name):
    def augment(seed, epoch, index):
        sizes = (40, 9) if name == "crop" else (40,)
        kind = "RandomCrop" if name == "crop" else "RandomArea"
        kind = getattr(imagenet.augmentation, kind)(*sizes, seed)
        return kind.random(kind.fixed(image), epoch, index).numpy().tobytes()

    image, state = to_tensor(photograph(90, 60)), torch.get_rng_state()
    found = [augment(*key) for key in np.ndindex(2, 2, 9)]
    assert torch.equal(torch.get_rng_state(), state) and len(set(found)) > 25
    torch.manual_seed(9)
    assert [augment(*key) for key in reversed([*np.ndindex(2, 2, 9)])] == found[::-1]


def test_a_pipe_among_the_images_is_not_waited_for(imagenet, tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert "a.jpg: not an image" in refusal(imagenet, imagenet.images.read_rgb, tmp_path / "a.jpg")
