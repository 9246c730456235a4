"""Exports of imagenet/: torchvision and timm load them."""

import math
import os

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from small_imagenet import full_disk, refusal, shrink, vary_norms
from synthetic import write_image

timm = pytest.importorskip("timm")
NAMES = [os.fsdecode(b"caf\xe9"), "dog", "cat"]  # as Python reads other encodings than UTF-8


@pytest.fixture(scope="module")
def weights(imagenet):
    """A ResNet-18 with small branches, as after training."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(imagenet, patch)
        torch.manual_seed(0)
        network = vary_norms(imagenet.resnet.build("resnet18", num_classes=3))
    metadata = {"arch": "resnet18", "classes": NAMES, "image_size": 40}
    return imagenet.weights.Weights("a run", network.state_dict(), metadata)


@pytest.fixture(scope="module")
def same_logits(imagenet, weights):
    """Return whether a network of torchvision or timm gives the same logits."""
    expected = imagenet.resnet.build("resnet18", branches=False, num_classes=3)
    expected.load_state_dict(weights.backbone)

    @torch.no_grad()
    def same_logits(network):
        images = torch.randn(2, 3, 64, 64)
        return torch.equal(network.eval()(images), expected.eval()(images)[0])

    return same_logits


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_loads_an_exported_file(imagenet, weights, same_logits, tmp_path, suffix):
    path = tmp_path / f"backbone{suffix}"
    imagenet.export.export(weights, "resnet18", 40, path)
    assert list(tmp_path.iterdir()) == [path]
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(state, strict=True)
    assert same_logits(network)
    metadata = imagenet.weights.read_weights(path).metadata
    assert metadata == {"program": "imagenet", **weights.metadata}


@pytest.mark.parametrize("size", [33, 224, 443])  # 443: the exact fraction is rounded down
def test_timm_loads_an_exported_folder(imagenet, weights, same_logits, tmp_path, size):
    """The same network, and the same pixels of any image."""
    run = imagenet.weights.Weights("", weights.state, weights.metadata | {"image_size": size})
    imagenet.export.export(run, "resnet18", None, tmp_path / "a")
    network = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    assert same_logits(network) and network.pretrained_cfg["label_names"] == NAMES
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    crop = imagenet.augmentation.evaluation_transform(size)
    compute = imagenet.distributed.Compute(torch.device("cpu"))
    for shape in ((300, 200), (37, 501)):
        image = Image.open(write_image(tmp_path / "a.png", size=shape))
        batches = imagenet.batches.device_batches([(crop(image)[None], torch.zeros(1))], compute)
        assert torch.equal(transform(image), next(batches)[0][0])
    assert imagenet.weights.read_weights(tmp_path / "a").metadata["classes"] == NAMES


def test_timm_has_the_names_and_resizes_to_the_same_side_at_every_size(imagenet):
    crop_fraction, side = imagenet.export.crop_fraction, imagenet.augmentation.resized_side
    for size in range(8, 4097):
        assert math.floor(size / crop_fraction(size)) == side(size)
    assert crop_fraction(224) == crop_fraction(64) == 0.875
    assert all(map(timm.is_model, imagenet.resnet.NETWORKS))


@pytest.mark.parametrize("name", ["a", "a.pth", "a.bin"])
def test_an_export_is_written_completely_or_not_at_all(imagenet, weights, tmp_path, name):
    arguments = (imagenet.export.export, weights, "resnet18", 40, tmp_path / name)
    with full_disk():
        assert "too large" in refusal(imagenet, *arguments)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    assert "exists already; choose another name" in refusal(imagenet, *arguments)
    assert list((tmp_path / name).iterdir()) == []
