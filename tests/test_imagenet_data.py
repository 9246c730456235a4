"""Evaluation data: preprocessing, image files and their distribution over processes."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from synthetic import write_image
from torchvision import transforms


def released_pixels(path, size=256, crop=224):
    """Apply the released preprocessing with PIL only: (H, W, 3) uint8."""
    with Image.open(path) as image:
        image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    start = round((size - crop) / 2)
    return np.asarray(image.crop((start, start, start + crop, start + crop)))


def pixels(tensor):
    """Return uint8 pixels as (H, W, 3)."""
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(500, 375), (90, 200), (256, 256), (1, 1)])
def test_square_resize_matches_the_released_pixels(imagenet, tmp_path, size):
    path = write_image(tmp_path / "a.png", size=size)
    tensor = imagenet.data.ImageFiles([path], [3], imagenet.presets.evaluation_transform())[0][0]
    assert tensor.shape == (3, 224, 224)
    assert np.array_equal(pixels(tensor), released_pixels(path))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_image_modes_are_converted_to_rgb(imagenet, tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    with Image.open(write_image(tmp_path / "rgb.png", size=(300, 200))) as image:
        image.convert(mode).save(path)
    transform = imagenet.presets.evaluation_transform()
    tensor, label = imagenet.data.ImageFiles([path], [3], transform)[0]
    assert label == 3
    assert np.array_equal(pixels(tensor), released_pixels(path))


def test_resize_scales_with_the_crop(imagenet, tmp_path):
    path = write_image(tmp_path / "a.png", size=(64, 48))
    with Image.open(path) as image:
        tensor = imagenet.presets.evaluation_transform(64)(image)
    assert np.array_equal(pixels(tensor), released_pixels(path, 73, 64))


def test_shorter_side_keeps_the_aspect_ratio(imagenet, tmp_path):
    with Image.open(write_image(tmp_path / "a.png", size=(300, 200))) as image:
        tensor = imagenet.presets.evaluation_transform(224, "shorter-side")(image)
        resized = image.resize((384, 256), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels(tensor), np.asarray(resized.crop((80, 16, 304, 240))))


def test_normalization_is_that_of_torchvision_to_the_last_bit(imagenet):
    """All 256 values in each of the three channels."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(Image.fromarray(values))
    images = torch.from_numpy(values).permute(2, 0, 1)[None]
    (batch,) = imagenet.loader.device_batches([(images, torch.zeros(1))], torch.device("cpu"))
    assert batch[0].dtype == torch.float32 and torch.equal(batch[0][0], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_logits_are_those_of_the_released_preprocessing(imagenet, tmp_path, workers):
    """Workers send uint8, and nothing is rounded on the way."""
    paths = [write_image(tmp_path / f"{seed}.png", seed, (50, 40)) for seed in range(3)]
    released = transforms.Compose(
        [
            transforms.Resize((37, 37), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files = imagenet.data.ImageFiles(paths, [0] * 3, imagenet.presets.evaluation_transform(32))
    with imagenet.workers.WorkerSignalGuard() as guard:
        loader = imagenet.loader.evaluation_loader(files, 3, workers, torch.device("cpu"), guard)
        assert next(iter(loader))[0].dtype == torch.uint8
        ((images, _),) = imagenet.loader.device_batches(loader, torch.device("cpu"))
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5().eval()
    expected = torch.stack([released(imagenet.images.read_rgb(path)) for path in paths])
    expected = expected.contiguous(memory_format=torch.channels_last)
    assert torch.equal(network(images), network(expected))


def test_each_image_goes_to_exactly_one_process(imagenet, monkeypatch):
    loaders, distributed = imagenet.loader, imagenet.distributed
    seen = []
    for rank in range(3):
        for module in (loaders, distributed):
            monkeypatch.setattr(module, "world_size", lambda: 3)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        pairs = [(torch.zeros(3, 1, 1), index) for index in range(11)]
        loader = loaders.evaluation_loader(pairs, 6, 0, torch.device("cpu"), None)
        assert loader.batch_size == 2
        seen += [int(label) for _, labels in loader for label in labels]
    assert seen == list(range(11))
    with pytest.raises(imagenet.command_line.UserError, match="2 image"):
        loaders.evaluation_loader(range(2), 6, 0, torch.device("cpu"), None)


def test_unreadable_images_raise_or_get_label_minus_one(imagenet, tmp_path, capsys):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not an image")
    transform = imagenet.presets.evaluation_transform(32)
    with pytest.raises(imagenet.command_line.UserError, match="broken.jpg"):
        imagenet.data.ImageFiles([path], [7], transform)[0]
    tensor, label = imagenet.data.ImageFiles([path], [7], transform, skip_unreadable=True)[0]
    assert label == -1 and tensor.shape == (3, 32, 32)
    assert "broken.jpg" in capsys.readouterr().err
