"""Training data of imagenet/: order, augmentation and distribution over processes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from synthetic import write_image
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional
from training import write_data

CPU = torch.device("cpu")


def test_each_epoch_has_every_image_once_and_can_start_at_any_step(imagenet):
    sampler = imagenet.loader.ResumableBatchSampler(10, batch_size=4, seed=3)
    epochs = []
    for epoch in range(2):
        sampler.start_at(epoch, 0)
        epochs.append(list(sampler))
        assert sorted(index for batch in epochs[-1] for _, index in batch) == list(range(10))
        assert [len(batch) for batch in epochs[-1]] == [4, 4, 2]
        sampler.start_at(epoch, 2)
        assert list(sampler) == epochs[-1][2:]
    orders = [[index for batch in epoch for _, index in batch] for epoch in epochs]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    other_seed = imagenet.loader.ResumableBatchSampler(10, batch_size=4, seed=4)
    assert [index for batch in other_seed for _, index in batch] != orders[0]


def test_processes_split_the_batches_of_one_process(imagenet, monkeypatch):
    def batches(rank, world_size):
        monkeypatch.setattr(imagenet.distributed, "rank", lambda: rank)
        monkeypatch.setattr(imagenet.distributed, "world_size", lambda: world_size)
        sampler = imagenet.loader.ResumableBatchSampler(13, batch_size=6, seed=0)
        return list(sampler), [sampler.batch_fraction(step) for step in range(sampler.steps)]

    whole, _ = batches(0, 1)
    parts = [batches(rank, 3) for rank in range(3)]
    for step, batch in enumerate(whole):
        fractions = [fractions[step] for _, fractions in parts]
        assert sum(fractions) == pytest.approx(1)
        keys = [own[step] for (own, _), fraction in zip(parts, fractions, strict=True) if fraction]
        assert [key for own in keys for key in own] == batch
        assert all(len(own[step]) >= 1 for own, _ in parts)  # a placeholder if the fraction is 0


def training_batches(imagenet, files, workers, first_step=0, epoch=1):
    sampler = imagenet.loader.ResumableBatchSampler(len(files), batch_size=4, seed=0)
    with imagenet.workers.WorkerSignalGuard() as guard:
        dataset = imagenet.data.AugmentedDataset(files, 0)
        loader = imagenet.loader.TrainingLoader(dataset, sampler, workers, 2, CPU, guard)
        return list(loader.epoch(epoch, first_step))


@pytest.mark.parametrize("augmentation", ["crop", "resized-crop"])
def test_augmentation_depends_only_on_seed_epoch_and_image(imagenet, tmp_path, augmentation):
    data = write_data(tmp_path)
    files = imagenet.data.find_image_sets(data, None, 36, augmentation).train
    torch.manual_seed(1)
    all_batches = training_batches(imagenet, files, workers=0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    rest = training_batches(imagenet, files, workers=2, first_step=2)
    assert torch.equal(torch.get_rng_state(), state)
    for batch, resumed in zip(all_batches[2:], rest, strict=True):
        assert torch.equal(batch.images, resumed.images)
        assert torch.equal(batch.labels, resumed.labels)
    augmented = imagenet.data.AugmentedDataset(files, seed=0)
    other_seed = imagenet.data.AugmentedDataset(files, seed=1)
    variants = {tuple(augmented[epoch, 5][0].flatten().tolist()) for epoch in range(4)}
    assert len(variants) == 4 and not torch.equal(augmented[0, 5][0], other_seed[0, 5][0])


def test_crop_augmentation_crops_anywhere_and_flips_half_of_the_images(imagenet):
    """The paper's augmentation: resize to a square, random crop, random flip, nothing else."""
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))  # 128 wide, 64 high
    image = Image.fromarray(np.stack([ramp, ramp.T.repeat(2, 1)[:64], ramp], -1))
    transform = imagenet.presets.training_transform("crop", 56)
    square = transform(image)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert abs(square.permute(1, 2, 0).numpy() - expected).max() <= 1
    random_part = transform.random_part(300, seed=0)
    crops = {
        (top, left, flip): square[:, top : top + 56, left : left + 56].flip([-1] * flip)
        for top in range(9)
        for left in range(9)
        for flip in range(2)
    }
    seen = []
    for index in range(300):
        crop = random_part(square, 0, index)
        assert crop.shape == (3, 56, 56) and crop.dtype == torch.uint8
        seen += [place for place, each in crops.items() if torch.equal(each, crop)]
    assert len(seen) == 300 and 120 < sum(flip for _, _, flip in seen) < 180
    for axis in range(2):
        assert {place[axis] for place in seen} == set(range(9))


def test_resized_crop_augmentation_is_the_common_one(imagenet):
    """8 to 100 % of the area, aspect ratios of 3/4 to 4/3, bicubic, and half of them flipped."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
    transform, flips = imagenet.presets.training_transform("resized-crop", 40), 0
    random_part = transform.random_part(1, seed=0)
    for epoch in range(40):
        torch.manual_seed(imagenet.seeds.derived_seed(0, epoch, 0))
        crop = RandomResizedCrop.get_params(smooth, (0.08, 1.0), (3 / 4, 4 / 3))
        flips += (flip := bool(torch.rand(1) < 0.5))
        expected = functional.resized_crop(smooth, *crop, [40, 40], InterpolationMode.BICUBIC)
        expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()
        actual = random_part(transform(smooth), epoch, 0).int()
        assert (actual - (expected.flip(2) if flip else expected)).abs().max() <= 2
    assert 10 < flips < 30


def test_each_image_of_an_epoch_is_augmented_differently(imagenet, tmp_path):
    paths = [write_image(tmp_path / "a.png")] * 4
    transform = imagenet.presets.training_transform("resized-crop", 40)
    files = imagenet.data.ImageFiles(paths, [0] * 4, transform)
    augmented = imagenet.data.AugmentedDataset(files, seed=0)
    images = {tuple(augmented[0, index][0].flatten().tolist()) for index in range(4)}
    assert len(images) == 4


def test_training_and_evaluation_images_are_normalized_alike(imagenet, tmp_path):
    path, presets = tmp_path / "plain.png", imagenet.presets
    Image.new("RGB", (50, 50), (200, 100, 50)).save(path)
    files = imagenet.data.ImageFiles([path], [0], presets.training_transform("crop", 40))
    (batch,) = training_batches(imagenet, files, workers=0)
    files = imagenet.data.ImageFiles([path], [0], presets.evaluation_transform(40))
    loader = imagenet.loader.evaluation_loader(files, 1, 0, CPU, None)
    ((expected, _),) = imagenet.loader.device_batches(loader, CPU)
    assert torch.equal(batch.images, expected)


def test_path_array_returns_the_paths(imagenet, tmp_path):
    names = [tmp_path / "a b" / "ü.png", tmp_path / "c.png"]
    paths = imagenet.data.PathArray(names)
    assert len(paths) == 2 and list(paths) == names
